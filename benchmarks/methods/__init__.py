"""Methods that make a schedule, under one door: registry."""
