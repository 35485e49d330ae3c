"""A schedule in a diffusers scheduler.

`installing` puts it in, `scheduled` makes the classes that carry it; `adapters` has what is particular about each
class, `levels` the arrays that it steps by. `nonstationary` is the one scheduler that is no class of diffusers', and
`plain` finds what stands behind any of them. `checks`, `refusals` and `proposals` say what does not fit.
"""
