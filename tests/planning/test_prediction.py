"""The arithmetic of a plan: exact in rows, steps, pieces and devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.planning import prediction
from limbeck.planning.seen import Piece, Seen


def seen(**more) -> Seen:
    own = {
        **{"name": "distil", "method": "kd", "control": False, "steps": 40, "epochs": 4, "per_epoch": 10},
        **{"batch_size": 10, "train_rows": 95, "patient": False, "validate_every": 1, "save_every": 30.0},
        **{"micro_batch": "auto", "precision": "fp32"},
    }
    found = Seen(**(own | more))
    found.memory = {"student": 100, "teacher": 400, "method": 10, "gradients": 100, "optimizer": 200, "ema": 0}
    found.updates = {"student": Piece(8, 8, 16, 800, None, 800 + 100 + 80, 100, False)}
    found.timed = [(1.0, 10)] * 8
    found.validations, found.validation_rows, found.validation_s = [0.5], (20, 20), 0.5
    found.done = 10
    return found


def test_the_parts_add_up_to_the_peak():
    parts = prediction.sums(seen())
    total = parts.pop("total")
    assert total == sum(parts.values()) == 100 + 400 + 10 + 100 + 200 + 16 + 800 + 80


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_activations_are_divided_by_the_pieces_and_weights_are_not(pieces):
    parts = prediction.sums(seen(), pieces=pieces)
    assert parts["activations"] == 800 / pieces
    assert parts["temporary"] == 80 / pieces
    assert parts["total"] == 810 + 16 + 880 / pieces
    assert prediction.sums(seen(), devices=pieces)["activations"] == 800 / pieces


def test_fsdp_divides_what_is_the_students():
    plain, spread = prediction.sums(seen(), devices=4), prediction.sums(seen(), devices=4, shard=True)
    assert plain["total"] - spread["total"] == pytest.approx(400 * 3 / 4)
    assert spread["teacher"] == plain["teacher"] == 400


def test_a_whole_update_is_never_cut():
    one = seen()
    one.updates["student"].whole = True
    assert prediction.sums(one, pieces=8)["activations"] == 800


def test_half_precision_scales_what_is_kept_as_it_was_measured():
    one = seen()
    one.updates["student"].kept_half = 400
    assert prediction.sums(one)["activations"] == 400


@given(room=st.integers(0, 3000))
def test_the_least_pieces_are_the_first_that_fit(room):
    one = seen()
    pieces = prediction.least_pieces(one, room)
    totals = {k: prediction.sums(one, pieces=k)["total"] for k in (1, 2, 4, 8)}
    fitting = [k for k, total in totals.items() if total <= room]
    assert pieces == (fitting[0] if fitting else None)


@given(steps=st.integers(0, 200), batch=st.integers(1, 30), rows=st.integers(1, 95))
def test_rows_are_those_of_a_loader(steps, batch, rows):
    per_epoch = -(-rows // batch)
    one = seen(batch_size=batch, train_rows=rows, per_epoch=per_epoch)
    sizes = [min(batch, rows - i * batch) for i in range(per_epoch)]
    assert prediction.rows_of(one, steps) == sum(sizes[step % per_epoch] for step in range(steps))


@given(steps=st.integers(1, 100), every=st.integers(1, 5))
def test_validations_are_those_of_a_trainer(steps, every):
    one, made = seen(validate_every=every), 0
    for step in range(1, steps + 1):
        epoch_over, last = step % one.per_epoch == 0, step == steps
        done = (step - 1) // one.per_epoch + 1
        made += (epoch_over or last) and (done % every == 0 or last)
    assert prediction.validations(one, steps) == made


@given(epochs=st.integers(1, 50))
def test_time_is_linear_in_epochs(epochs):
    one = prediction.stage_seconds(seen(steps=10, epochs=1))
    many = prediction.stage_seconds(seen(steps=10 * epochs, epochs=epochs))
    assert many["training"] == pytest.approx(epochs * one["training"]) == pytest.approx(epochs * 9.5)
    assert many["validating"] == pytest.approx(epochs * one["validating"])
    made = many["training"] + many["validating"] + many["saving"]
    rehearsed = 9.5 + 0.5
    assert many["left_out"] == pytest.approx(made - rehearsed + 1.0)  # and the step that was made while measuring


def test_a_step_is_the_mean_without_what_stands_out():
    one = seen()
    one.timed = [(0.1, 10)] * 38 + [(9.0, 10), (0.001, 10)]
    assert prediction.per_row(one) == pytest.approx(0.01)
    one.timed, one.last = [], (0.3, 10)
    assert prediction.per_row(one) == pytest.approx(0.03)


def test_checkpoints_between_follow_save_every():
    one = seen(save_every=10.0)
    one.saves = [0.25, 0.5]
    assert prediction.stage_seconds(one)["saving"] == pytest.approx(4 * 0.25)  # 38 s of steps and 2 of validation
    one.save_every = 0
    assert prediction.stage_seconds(one)["saving"] == pytest.approx(40 * 0.25)
