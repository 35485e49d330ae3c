"""Fixtures that several test modules share: what is expensive to compile is computed once."""
