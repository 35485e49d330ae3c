"""What searches and installed schedules cost, and the SciPy search they are held against."""
