"""The upper level: evolution over a box, and the file that a long one is resumed from."""
