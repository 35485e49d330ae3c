"""What tuning on a model buys: every way to look at a model, at equal evaluations."""
