"""Figures of schedules: what is drawn, and that nothing to draw is refused."""

import itertools

import numpy as np
import pytest

import hso_jax
from hso_jax.cli.show import landscape
from hso_jax.plots import methods_figure, plot
from hso_jax.schedule import Origin

RULES = [
    hso_jax.baseline(name, hso_jax.preset("sd15"), nfe, layout=layout)
    for name, nfe, layout in itertools.product(("trailing", "karras"), (4, 6), ("node", "interval"))
]


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def test_plot_draws_every_node_of_every_schedule():
    found = panels(hso_jax.plot(RULES))
    assert [title.split()[0] for title in found] == ["node", "interval"]
    for panel, layout in zip(found.values(), ("node", "interval"), strict=True):
        drawn = sorted(line.get_ydata().tolist() for line in panel.lines)
        assert drawn == sorted((1000 * s.t - 1).tolist() for s in RULES if s.layout == layout)
    flow = hso_jax.baseline("trailing", hso_jax.preset("sd3-medium"), 5)
    np.testing.assert_allclose(plot(flow).axes[0].lines[0].get_ydata(), flow.timesteps, rtol=1e-12)


def test_methods_figure_draws_every_method_and_nfe():
    figure = methods_figure([s for s in RULES if s.layout == "node"])
    found = panels(figure)
    assert list(found) == ["N = 4", "N = 6"] and all(len(p.lines) == 2 for p in found.values())
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["trailing", "karras"]


def test_landscape_grows_with_the_range_and_marks_the_schedule():
    schedule = hso_jax.Schedule.from_t(hso_jax.preset("sd15"), [0.96, 0.7, 0.4, 0.03], origin=Origin(d_min=0.15))
    figure = landscape(schedule)
    star = next(line for line in figure.axes[0].lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0.03, 0.96)


def test_nothing_to_draw_is_an_error():
    for draw in (plot, methods_figure):
        with pytest.raises(ValueError, match="no schedules"):
            draw([])
    with pytest.raises(ValueError, match="one node"):
        landscape(hso_jax.Schedule.from_t(hso_jax.preset("sd15"), [1.0]))
