"""What searches and installed schedules cost."""
