"""Schedules compared on trained networks of other people."""
