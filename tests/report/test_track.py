"""Logs on one axis of steps."""

from limbeck.report.parts.track import Track, lines, share_of, values


def record(step, stage="a", **more):
    return {"step": step, "stage": stage, "terms": {"task": {"value": float(step), "share": 0.5}}} | more


def test_stages_that_count_from_the_beginning_go_on_where_the_last_ended():
    track = Track.of([record(0), record(2), record(1, "b"), record(3, "b"), record(0, "c")])
    assert [r["x"] for r in track.training] == [0, 2, 3, 5, 5]
    assert track.starts == [(0.0, "a"), (2, "b"), (5, "c")]
    assert track.end == 5


def test_stages_that_count_on_are_left_as_they_are():
    track = Track.of([record(1), record(4), record(5, "b"), record(9, "b")])
    assert [r["x"] for r in track.training] == [1, 4, 5, 9]
    assert track.starts == [(0.0, "a"), (4, "b")]


def test_no_log_is_no_track():
    assert Track.of([]) == Track()
    assert Track().ending(9).training == []
    assert Track().parts() == []


def test_a_control_is_moved_to_end_with_the_run():
    control = Track.of([record(1), record(3)]).ending(10)
    assert [r["x"] for r in control.training] == [8, 10]
    assert control.end == 10
    assert [r["x"] for r in Track.of([record(1), record(3)]).ending(2).training] == [1, 3]


def test_stages_are_apart_only_where_their_terms_differ():
    same = Track.of([record(1), record(2, "b")])
    assert [(name, len(records)) for name, records in same.parts()] == [("", 2)]
    other = record(2, "b", terms={"kl": {"value": 1.0}})
    assert [(name, len(records)) for name, records in Track.of([record(1), other]).parts()] == [("a", 1), ("b", 1)]


def test_validation_is_told_apart():
    seen = {"event": "validation", "step": 2, "stage": "a", "metric": 0.5}
    track = Track.of([record(1), record(1, trainee="critic"), seen, seen | {"step": 3, "metric": None}, {"note": 1}])
    assert track.metric() == [(2, 0.5)]
    found = lines(track.training)
    assert list(found) == [("student", "task"), ("critic", "task")]


def test_values_that_are_no_numbers_are_left_out():
    track = Track.of([record(1), record(2, terms={"task": {"value": float("nan")}}), record(3, terms={"other": 4.0})])
    assert values(track.training, "task") == [(1, 1.0)]
    assert values(track.training, "other") == [(3, 4.0)]
    assert [share_of(r, "task") for r in track.training] == [0.5, 0.0, 0.0]
