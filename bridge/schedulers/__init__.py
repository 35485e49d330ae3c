"""A schedule in a diffusers scheduler.

`installing` puts it in, `scheduled` makes the classes that carry it; `adapters` has what is particular about each
class, `levels` the arrays that it steps by. `checks`, `refusals` and `proposals` say what does not fit.
"""
