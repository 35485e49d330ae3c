"""Speed of searches and of installed schedules."""
