"""A schedule in a diffusers scheduler.

`install` puts it in and `scheduled` makes the classes that carry it, from the table in `rows`. `nonstationary` is the
one scheduler that is no class of diffusers'. `checks` says what does not belong together.
"""
