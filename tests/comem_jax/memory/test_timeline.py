"""The picture of a run."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from comem_jax.memory.timeline import COLORS, FAILURE_COLOR, SWAP_COLOR, WAIT_COLOR, draw_timeline
from comem_jax.memory.trace import Instant, Span, Trace


def pixels(image, color, tolerance=0.02) -> int:
    """Count the pixels of a colour; thin lines are blended with what is beside them."""
    return int((np.abs(image[..., :3] - np.array(to_rgb(color))).max(-1) < tolerance).sum())


@pytest.fixture
def trace():
    trace = Trace()
    trace.spans = [
        Span("agent", "call", 0.0, 2.0, {"step": 1}),
        Span("environment", "search", 2.0, 3.0, {"step": 1}),
        Span("memory", "summary", 3.0, 9.0, {"coverage": 1}),
        Span("agent", "wait", 6.0, 9.0),
    ]
    trace.instants = [
        Instant("agent", "swap", 9.0, {"coverage": 1}),
        Instant("memory", "failure", 5.0, {"coverage": 1}),
    ]
    return trace


def draw(trace, folder):
    draw_timeline(trace, folder / "timeline.png", "a run")
    return matplotlib.image.imread(folder / "timeline.png")


def test_the_size_and_every_kind_of_mark(trace, tmp_path):
    image = draw(trace, tmp_path)
    assert image.shape[:2] == (400, 1400)
    for color in (*COLORS.values(), WAIT_COLOR, SWAP_COLOR, FAILURE_COLOR):
        assert pixels(image, color, 0.2) > 20
    # The memory call took three times as long as the agent's.
    legend = pixels(draw(Trace(), tmp_path), COLORS["memory"])
    bars = {lane: pixels(image, COLORS[lane]) - legend for lane in COLORS}
    assert bars["memory"] / bars["environment"] == pytest.approx(6, rel=0.1)
    assert bars["agent"] / bars["environment"] == pytest.approx(2, rel=0.1)


def test_marks_come_from_the_trace(trace, tmp_path):
    full = draw(trace, tmp_path)
    trace.instants, trace.spans = [], trace.spans[:3]
    plain = draw(trace, tmp_path)
    for color in (WAIT_COLOR, SWAP_COLOR, FAILURE_COLOR):
        assert pixels(plain, color, 0.2) < pixels(full, color, 0.2)


def test_other_forms_and_long_runs(tmp_path):
    trace = Trace()
    trace.spans = [Span("agent", "call", i, i + 0.5, {"step": i}) for i in range(300)]
    trace.instants = [Instant("agent", "swap", i, {"coverage": i}) for i in range(1, 300)]
    draw_timeline(trace, tmp_path / "timeline.svg", "a long run")
    assert (tmp_path / "timeline.svg").read_text().count("<text") < 200


def test_an_empty_trace_is_drawn(tmp_path):
    assert draw(Trace(), tmp_path).shape[:2] == (400, 1400)
