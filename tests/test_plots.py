import numpy as np
import pytest

import hso_jax
from hso_jax.cli.show import landscape
from hso_jax.plots import methods_figure, plot
from hso_jax.schedule import Origin


@pytest.fixture(scope="module")
def baselines():
    noise = hso_jax.preset("sd15")
    return [
        hso_jax.baseline(name, noise, nfe, layout=layout)
        for name in ("trailing", "karras")
        for nfe in (4, 6)
        for layout in ("node", "interval")
    ]


def test_plot_draws_every_node_of_every_schedule(baselines):
    figure = plot(baselines)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [p.get_title().split()[0] for p in panels] == ["node", "interval"]
    for panel, layout in zip(panels, ("node", "interval"), strict=True):
        drawn = sorted(line.get_ydata().tolist() for line in panel.lines)
        expected = sorted((1000 * s.t - 1).tolist() for s in baselines if s.layout == layout)
        assert drawn == expected


def test_flow_heights_are_the_timesteps():
    schedule = hso_jax.baseline("trailing", hso_jax.preset("sd3-medium"), 5)
    (line,) = plot([schedule]).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), schedule.timesteps, rtol=1e-12)


def test_methods_figure_has_a_line_per_method_and_a_panel_per_nfe(baselines):
    figure = methods_figure([s for s in baselines if s.layout == "node"])
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [p.get_title() for p in panels] == ["N = 4", "N = 6"]
    assert all(len(p.lines) == 2 for p in panels)
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
