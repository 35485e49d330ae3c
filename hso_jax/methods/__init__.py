"""The methods: what each minimises, its lanes, and its results."""
