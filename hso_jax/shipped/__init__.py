"""What is shipped, so that most users never search: the zoo's schedules, and what to use of them for a model."""
