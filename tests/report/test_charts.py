"""Charts: scales that map exactly, ticks that are round, SVG that any parser reads, marks where the numbers say."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluation.calibration import Bin
from limbeck.report.charts.bars import bars
from limbeck.report.charts.lines import Curve, curves, smooth, thin
from limbeck.report.charts.matrix import Square, confusion_squares, matrix
from limbeck.report.charts.reliability import diagram
from limbeck.report.charts.scale import TINY, Scale, fit, spread
from limbeck.report.charts.scatter import Spot, apart, scatter
from limbeck.report.charts.stack import band, whole
from limbeck.report.charts.whiskers import ruler, scale_for, whisker
from limbeck.report.numbers import plain, share

finite = st.floats(-1e9, 1e9, allow_nan=False)
HOSTILE = "<b>&\"'</svg>"


def parsed(svg: str) -> ET.Element:
    """The chart as XML: with a title and a description, and no number that is none."""
    root = ET.fromstring(svg)
    assert root.tag == "svg"
    assert root[0].tag == "title"
    assert root[0].text
    assert root[1].tag == "desc"
    assert root.get("role") == "img"
    assert "nan" not in svg
    assert "inf" not in svg.replace("info", "")
    return root


def classes(root: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in root.iter() if name in (element.get("class") or "").split()]


def test_linear_and_logarithmic_scales():
    linear = Scale(0, 10, 100, 200)
    assert [linear(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert linear(-3) == 100
    assert linear(30) == 200
    log = Scale(1, 100, 0, 10, log=True)
    assert log(10) == pytest.approx(5)
    assert [log(v) for v in (1, 100)] == pytest.approx([0, 10])


@given(st.lists(finite, max_size=20), st.booleans())
def test_every_value_finds_a_place_and_ticks_lie_inside(values, log):
    scale = fit(values, 10, 90, log=log)
    assert scale.low < scale.high
    for value in values:
        if value > TINY or not log:
            assert 10 <= scale(value) <= 90
    ticks = scale.ticks(4)
    span = scale.high - scale.low
    assert all(scale.low - 1e-6 * span <= tick <= scale.high + 1e-6 * span for tick in ticks)
    assert ticks == sorted(ticks)
    assert len(ticks) <= 12


def test_round_ticks():
    assert Scale(0, 1, 0, 1).ticks(4) == [0, 0.25, 0.5, 0.75, 1]
    assert Scale(0.81, 0.98, 0, 1).ticks(4) == [0.85, 0.9, 0.95]
    assert Scale(1, 1000, 0, 1, log=True).ticks(4) == [1, 10, 100, 1000]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_names_are_moved_apart(places):
    moved = spread(places, 10, 0, 100)
    assert all(b - a >= 10 - 1e-9 for a, b in zip(sorted(moved), sorted(moved)[1:]))
    assert max(moved) <= 100 + 1e-9
    if all(abs(a - b) >= 10 for i, a in enumerate(places) for b in places[:i]):
        assert moved == pytest.approx(places)


def test_marks_step_aside_only_where_they_meet():
    assert apart([(50, 0, 10), (50, 20, 30), (90, 0, 10)], 12) == [50, 50, 90]
    assert apart([(50, 0, 10), (50, 5, 15), (52, 8, 12)], 12) == [50, 62, 76]


def test_smoothing_keeps_constants_and_takes_means():
    assert smooth([(i, 3.0) for i in range(9)], 4) == [(i, 3.0) for i in range(9)]
    assert smooth([(0, 0.0), (1, 3.0), (2, 6.0)], 3) == [(0, 1.5), (1, 3.0), (2, 4.5)]
    assert thin(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert thin([1, 2], 5) == [1, 2]


def panel(found: list[Curve], **more) -> str:
    return curves(found, title="loss", desc="two terms", write=plain, tick=plain, label="loss", **more)


def test_curves_have_a_line_each_and_say_their_numbers():
    one = Curve(HOSTILE, [(i, 1 + i / 10) for i in range(10)], "c0")
    two = Curve("control", [(5, 2.0)], "control", "control", marked=True, chosen=[(5, 2.0)])
    root = parsed(panel([one, two], stages=[(0, "first"), (5, HOSTILE)]))
    assert len(classes(root, "line")) == 2
    assert len(classes(root, "chosen")) == 1
    assert len(classes(root, "stage")) == 1
    tips = [group.find("title").text for group in classes(root, "at")]
    assert tips[0] == f"step 0\n{HOSTILE} 1"
    assert tips[5] == f"step 5\n{HOSTILE} 1.5\ncontrol 2"
    assert len(tips) == 10


def test_curves_turn_logarithmic_only_for_positive_values_far_apart():
    far = Curve("far", [(0, 1.0), (1, 100.0)], "c0")
    assert "(logarithmic)" in panel([far])
    assert "(logarithmic)" not in panel([far, Curve("zero", [(0, 0.0)], "c1")])
    assert "(logarithmic)" not in panel([Curve("near", [(0, 1.0), (1, 2.0)], "c0")])
    assert panel([Curve("empty", [], "c0")]) == ""


def test_long_and_noisy_curves_are_thinned_and_smoothed():
    long = Curve("long", [(i, math.sin(i)) for i in range(20_000)], "c0")
    svg = panel([long])
    assert len(svg) < 30_000
    assert len(classes(parsed(svg), "raw")) == 1


def test_bands_stack_to_the_whole():
    svg = band(["a", "b"], ["c0", "c1"], [(0, [1, 3]), (1, [2, 2])], title="shares", label="share")
    root = parsed(svg)
    assert len(classes(root, "area")) == 2
    assert [group.find("title").text.replace("\u202f", " ") for group in classes(root, "at")] == [
        "step 0\na 25 %\nb 75 %",
        "step 1\na 50 %\nb 50 %",
    ]
    assert band(["a"], ["c0"], [(0, [0.0]), (1, [0.0])], title="x", label="x") == ""


def test_one_whole_is_cut_in_proportion():
    root = parsed(
        whole([("right", 3, "both"), ("wrong", 1, "neither"), ("none", 0, "student")], title="t", desc="d", width=400)
    )
    widths = [float(part.get("width")) for part in classes(root, "part")]
    assert widths == [298.5, 98.5]
    assert whole([("right", 0, "both")], title="t", desc="d") == ""


def test_scatter_puts_each_model_at_its_numbers():
    spots = [Spot("student", 10, 0.8, 0.7, 0.9, "student"), Spot("teacher", 1000, 0.9, name=HOSTILE, tip=HOSTILE)]
    common = {
        "title": "t",
        "desc": "d",
        "cost": "size",
        "quality": "accuracy",
        "write_cost": plain,
        "write_quality": share,
    }
    root = parsed(scatter(spots, **common))
    circle, square = classes(root, "mark")
    assert float(circle.get("cx")) < float(square.get("x"))
    assert float(circle.get("cy")) > float(square.get("y"))
    assert len(classes(root, "whisker")) == 1
    assert square.find("title").text == HOSTILE
    assert scatter([Spot("student", 0, 0.5)], **common) == ""


def test_confusion_cells_are_as_deep_as_the_root_of_their_share():
    squares = confusion_squares([[3, 1], [0, 4]], ["cat", "dog"], "student", most=9, write=share)
    depth = {(square.row, square.column): square.depth for square in squares}
    assert depth == {(0, 0): math.sqrt(0.75), (0, 1): 0.5, (1, 1): 1.0}
    assert "cat called dog, 1 of 4" in next(s.tip for s in squares if s.column > s.row)
    assert len(confusion_squares([[3, 1], [0, 4]], ["a", "b"], "x", most=2, write=share)) == 2


@pytest.mark.parametrize("size", [1, 3, 30, 120])
def test_matrices_of_any_size_stay_inside_their_width(size):
    names = [f"class number {i}" for i in range(size)]
    squares = [Square(i, i, -0.5 if i else 1.0, str(i), names[i]) for i in range(size)]
    root = parsed(matrix(names, names, squares, title="t", desc="d", row_label="true", column_label="said"))
    cells = classes(root, "cell")
    assert len(cells) == size
    assert all(float(cell.get("x")) + float(cell.get("width")) <= 420.1 for cell in cells)
    assert classes(root, "teacher") == cells[1:]


def test_bars_grow_from_zero_both_ways():
    root = parsed(bars(["a", HOSTILE], ["one"], [[1.0], [-0.5]], ["student"], title="t", desc="d", write=plain))
    up, down = classes(root, "bar")
    zero = float(up.get("x"))
    assert float(down.get("x")) + float(down.get("width")) == pytest.approx(zero, abs=0.11)
    assert float(up.get("width")) == pytest.approx(2 * float(down.get("width")), abs=0.2)
    assert bars([], [], [], [], title="t", desc="d", write=plain) == ""


def test_reliability_marks_lie_on_the_diagonal_for_a_calibrated_model():
    bins = [Bin(0.0, 0.5, 2, 0.25, 0.25), Bin(0.5, 1.0, 4, 0.75, 0.75)]
    root = parsed(diagram(bins, "student", title="t", desc="d"))
    assert all(miss.get("y1") == miss.get("y2") for miss in classes(root, "miss"))
    small, large = (float(bar.get("height")) for bar in classes(root, "bar"))
    assert small == pytest.approx(large / 2)
    assert diagram([Bin(0, 1, 0, math.nan, math.nan)], "student", title="t", desc="d") == ""


def test_whiskers_share_a_scale_and_keep_zero_in_sight():
    scale = scale_for([0.1, 0.3], zero=True)
    root = parsed(whisker(scale, 0.2, 0.1, 0.3, "student", "tip", zero=True))
    assert 0 < float(classes(root, "zero")[0].get("x1")) < float(classes(root, "mark")[0].get("cx"))
    assert len(classes(parsed(whisker(scale, 0.2, None, None, "student", "tip")), "whisker")) == 0
    assert parsed(ruler(scale, plain)).findall("text")
