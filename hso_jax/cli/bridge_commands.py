"""`apply` and `sample`."""


def add_parsers(subparsers):
    """Nothing yet."""
