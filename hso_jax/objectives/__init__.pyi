from .expansion import OBJECTIVES as OBJECTIVES
from .expansion import NodeObjective as NodeObjective
from .expansion import Terms as Terms
from .mep_spf import mep as mep
from .mep_spf import paper_d_min as paper_d_min
from .mep_spf import spf as spf
