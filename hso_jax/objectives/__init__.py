"""What a schedule costs: bounds that need the nodes alone, and the solver's error, which is measured on problems."""

import lazy_loader

# `__init__.pyi` lists the names and where they are: MEP and SPF are needed where the others' JAX is not.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
