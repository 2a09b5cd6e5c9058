"""Points in the plane: one scale both ways, every point drawn once, lines that begin in a ring and end in a dot."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.report.charts.plane import SIZE, Cloud, Way, Window, clouds, key, ways

places = st.floats(-1e6, 1e6, allow_nan=False, width=32)
points = st.lists(st.tuples(places, places), min_size=1, max_size=12)
HOSTILE = "<b>&\"'</svg>"


def parsed(svg):
    assert "nan" not in svg
    assert "inf" not in svg
    return ET.fromstring(svg)


def starts(path):
    """Where the pieces of a path begin."""
    return [tuple(map(float, found)) for found in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", path.get("d"))]


@given(points, points)
def test_a_unit_is_as_long_upwards_as_across_and_the_core_is_inside(core, further):
    window = Window.around(core, further)
    frame = window.frame(300)
    across = (frame.x.end - frame.x.start) / (frame.x.high - frame.x.low)
    up = (frame.y.start - frame.y.end) / (frame.y.high - frame.y.low)
    assert across == pytest.approx(up, rel=1e-6)
    assert window.outside(core) == 0
    assert 0 < frame.height <= 1.15 * 250 + 37
    assert frame.x.low <= window.low[0]
    assert frame.x.high >= window.high[0]


def test_one_stray_point_does_not_make_the_rest_small():
    core = [(0.0, 0.0), (1.0, 1.0)]
    window = Window.around(core, [(1.5, 0.5), (100.0, 0.0), (float("nan"), 0.0)])
    assert window.high[0] == pytest.approx(1.5 + 0.05 * 1.5)
    assert window.outside([(1.5, 0.5), (100.0, 0.0), (float("nan"), 0.0)]) == 2


def test_nothing_and_a_single_point_have_a_window():
    for core in ([], [(3.0, -2.0)], [(float("inf"), 0.0)]):
        window = Window.around(core)
        assert window.low[0] < window.high[0]
        parsed(clouds([Cloud("a", core, "c0")], window, title="t", desc="d"))


@pytest.mark.parametrize("shape", range(5))
def test_every_point_is_drawn_once_where_it_is(shape):
    core = [(0.0, 0.0), (1.0, 0.5), (0.25, 1.0)]
    window = Window.around(core)
    cloud = Cloud("a", [*core, (float("nan"), 0.0)], "c1", shape)
    root = parsed(clouds([cloud], window, title=HOSTILE, desc=HOSTILE))
    assert root[0].text == root[1].text == HOSTILE
    (dots,) = [e for e in root.iter() if (e.get("class") or "").startswith("dots")]
    frame = window.frame(250)
    assert dots.get("class") == "dots c1"
    assert len(starts(dots)) == 3
    for (x, y), (px, py) in zip(core, starts(dots)):
        assert abs(frame.x(x) - px) <= 1.3 * SIZE
        assert abs(frame.y(y) - py) <= 1.3 * SIZE


def test_a_way_has_a_ring_a_dot_for_each_step_and_a_larger_one_at_its_end():
    window = Window((0.0, 0.0), (1.0, 1.0))
    way = Way([(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)], ["one", HOSTILE, "three"], "c2")
    alone = Way([(0.5, 0.5)], ["only"], "c3")
    root = parsed(ways([way, alone], [(0.1, 0.1)], window, title="t", desc="d", width=250))
    marks = [e for e in root.iter() if (e.get("class") or "").startswith("mark")]
    assert [m.get("class") for m in marks] == ["mark begin c2", "mark c2", "mark c2", "mark c3"]
    assert [m[0].text for m in marks] == ["one", HOSTILE, "three", "only"]
    assert [float(m.get("r")) for m in marks] == [3.4, 1.7, 4.2, 4.2]
    lines = [e.get("d") for e in root.iter() if (e.get("class") or "").startswith("line")]
    assert lines == ["M40 212L140 162L240 12"]
    behind = [e for e in root.iter() if e.get("class") == "dots behind"]
    assert len(behind) == 1


def test_the_key_of_a_cloud_is_its_mark():
    for shape in range(4):
        root = ET.fromstring(key("c1", shape))
        assert root.get("aria-hidden") == "true"
        assert root[0].get("class") == "dots c1"
