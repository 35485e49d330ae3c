"""Texts of others made fit to be shown: on a terminal, in a picture, in a message."""

from __future__ import annotations


def shown(text: object) -> str:
    r"""The text with everything that is no visible character written as an escape: ESC as \x1b, a newline as \n.

    Terminals obey control characters, and lone surrogates (bytes of an argument that are no UTF-8, or escapes in a JSON
    file) can be neither printed nor drawn.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
