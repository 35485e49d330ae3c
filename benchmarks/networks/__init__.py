"""Schedules compared on the trained networks: cells, records, report."""
