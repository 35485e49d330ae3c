"""Schedules judged on trained networks that the project did not make: loaded from a folder, measured, not kept."""
