"""Logs on one axis of steps."""

from limbeck.report.parts.track import Track, share_of, term


def record(step, stage="a", **more):
    return {"step": step, "stage": stage, "terms": {"task": {"value": float(step), "share": 0.5}}} | more


def test_stages_that_count_from_one_go_on_where_the_last_ended():
    track = Track.of([record(1), record(2), record(1, "b"), record(3, "b"), record(1, "c")])
    assert [r["x"] for r in track.training] == [1, 2, 3, 5, 6]
    assert track.starts == [(0.0, "a"), (2, "b"), (5, "c")]


def test_stages_that_count_on_are_left_as_they_are():
    track = Track.of([record(1), record(4), record(5, "b"), record(9, "b")])
    assert [r["x"] for r in track.training] == [1, 4, 5, 9]
    assert track.starts == [(0.0, "a"), (4, "b")]


def test_one_stage_has_no_boundary():
    assert Track.of([record(1), record(2)]).starts == []
    assert Track.of([]) == Track()


def test_validation_and_trainees_are_told_apart():
    seen = {"event": "validation", "step": 2, "stage": "a", "metric": 0.5}
    track = Track.of([record(1), record(1, trainee="critic"), seen, seen | {"step": 3, "metric": None}, {"note": 1}])
    assert {who: len(records) for who, records in track.trainees().items()} == {"student": 1, "critic": 1}
    assert track.metric() == [(2, 0.5)]


def test_values_that_are_no_numbers_are_left_out():
    track = Track.of([record(1), record(2, terms={"task": {"value": float("nan")}}), record(3, terms={"other": 4.0})])
    assert term(track.training, "task") == [(1, 1.0)]
    assert term(track.training, "other") == [(3, 4.0)]
    assert [share_of(r, "task") for r in track.training] == [0.5, 0.0, 0.0]
