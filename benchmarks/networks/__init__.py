"""Schedules compared on the trained networks: cells, grids of images, report."""
