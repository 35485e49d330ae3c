"""The sentences of the report, apart from its figures. All of them hold whatever the figures are."""

HOW = """\
Made by `python -m benchmarks` from the records in `benchmarks.jsonl`. Each cell installs a schedule of N nodes in a
diffusers solver through the bridge, samples with exactly N evaluations of the network (counted at the network; the
last step goes to clean data) and compares with the *converged samples*, what infinitely many steps make of the same
noise. RMSE is over all pixels in [-1, 1], paired by noise. FID is the Frechet distance of the 96 features of a small
classifier of the same data (not Inception's: it compares schedules here, not with other papers). The FID of few
samples is biased upwards; with {samples} samples only its order within a column means something. Intervals are 95 %
bootstrap over images. They hold the spread between images, which all schedules share, so that "inside the interval"
is a cautious tie. `solver-error` and `nonstationary` have the defaults of 0.2.0; what is named "-other" those of 0.1.0
(no error of the model, the mean of squares, clusters alone).
"""

SUMMARY = """\
Cells (solver and N) in which `solver-error` is better than every rule and `hso` / not the best, but inside the best's
interval / beaten beyond it. With guidance fewer rules are measured, those of the tables under "Guidance".
"""

MARKS = """\
**Bold**: the best of a column. *Italic*: inside the interval of the best. `direct` is the limit, nodes optimised for
the RMSE on the network itself, and is not ranked; `gits` and `autodiffusion` look at the network as well and are
ranked.
"""

STUDIES = """\
The studies of HSO (Zhu et al., AAAI 2026, arXiv 2511.11688) on the networks here. The paper's figures are for Stable
Diffusion 2.1-base and PixArt-alpha, FID with Inception to real images, and its UniPC stops at t_eps; they can be
compared in kind only.
"""

MAIN = """\
DM-NonUni / HSO in the paper's box / `solver-error`. The paper (LAION): DDIM N = 4 68.92 to 24.77, N = 5 35.38 to 17.17;
UniPC N = 4 18.96 to 15.71, N = 5 13.91 to 11.94.
"""

PSI = """\
HSO's (rho, t_eps, t_max), and for `solver-error` the exponent p of its start (a dash where the start was no member of
that family) and where its refined schedule ends and begins. Where the lower level converges rho does not change the
schedule. The paper finds rho* not monotone in N, with a peak of 12.42 at N = 8.
"""

ADAPTIVITY = """\
The model's own schedule / the timesteps optimised for the other noise schedule (`fashion-eps` has Stable Diffusion's
betas, `fashion-v` PixArt's).
"""

ROBUSTNESS = """\
HSO without a spacing, with the paper's penalty (SPF), and with the spacing as a constraint (the default). The paper
(N = 4): without, [999, 70, 9, 9], FID 165.48; with SPF, [959, 716, 370, 30], 19.76. A lower level that converges does
not collapse without it.
"""

ABLATION = """\
DM-NonUni; its bound with the upper level added; MEP in place of its bound, between DM-NonUni's ends; both (HSO). The
paper (UniPC / DDIM): 18.07 / 71.57; 11.44 / 29.22; 26.33 / 37.27; 15.70 / 24.80.
"""

COST = """\
To prepare one schedule, on the machine (or machines) above. Compilation is apart: most of it happens once in a
process for an N. `autodiffusion` runs at reduced scale. The paper: HSO about 8 s, DM-NonUni about 1 s, AutoDiffusion
about 1.1 days on Stable Diffusion.
"""

OWN = """\
`nonstationary` (nodes and coefficients searched together, no evaluation of the network) against the best of all known
solvers with all schedules that do not look at the network, by RMSE and by FID each for itself: choices that no one can
make beforehand.
"""

DEFAULT = """\
What `recommend` gives for these networks in every cell, coefficients of their own (`nonstationary`), against what their
pipelines do by themselves: DDIM (Euler for the flow) with the rule of the scheduler's config, with guidance, where that
was not measured, with `trailing`. Geometric means over N of the error divided by the default's, and the largest.
"""

GUIDANCE = """\
Classifier-free guidance: none + w (labelled - none). The converged samples are those of the guided model.
"""

LIMIT = """\
RMSE of `solver-error`, and of the best of the rules and HSO, above that of the nodes optimised directly on the network.
"""

LOST = """\
Every cell in which a rule or HSO has a smaller error than `solver-error`, with the upper end of the best's interval;
those where the error of `solver-error` lies beyond it come first.
"""

GRIDS = """\
Rows are schedules, columns are seeds; the last row is where all of them would end with many steps.
"""

DETAIL = """\
`solver-error` with a direction's squared error weighed by its variance^-detail (not the paper's): RMSE looks at what is
large, the Fréchet distance at fine detail as well. Geometric means over solvers and N, relative to detail 0.
"""
