"""All nodes searched on a network itself, by gradients through it: what a schedule can reach at best.

    python -m benchmarks.methods.direct fashion-eps --solver unipc-3 --nfe 6

The search is `bridge.tune`'s with a known solver; errors are RMSEs to converged samples.
"""

from __future__ import annotations

from benchmarks import runner
from benchmarks.compared import SOLVERS
from benchmarks.methods import prepare
from benchmarks.metrics import rmse
from benchmarks.models.load import MODELS
from benchmarks.targets import Judged, own

SAMPLES, FINE = 256, 256


def main(argv: list[str] | None = None) -> None:
    """Search one cell and print the error on noise that the search did not see."""
    parser = runner.command("python -m benchmarks.methods.direct", __doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--solver", choices=SOLVERS, default="unipc-3", help="default %(default)s")
    parser.add_argument("--nfe", type=int, default=6, help="default %(default)s")
    args = parser.parse_args(argv)
    one = own(args.model)
    made, judged = prepare("direct", one, args.solver, args.nfe), Judged(one, SAMPLES, FINE)
    error = rmse(one.sample(made.schedule, args.solver, judged.latents), judged.converged)
    start, searched = made.kept["start_error"], made.kept["error"]
    print(f"judged {error.value:.4f} ({error.low:.4f}..{error.high:.4f}); searched {searched:.4f}, from {start:.4f}")
    print(f"{made.calls} evaluations, {made.seconds:.0f} s")
    print(f"timesteps {made.schedule.timesteps.round(1).tolist()}")


if __name__ == "__main__":
    main()
