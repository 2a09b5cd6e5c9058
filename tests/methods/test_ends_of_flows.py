"""Regression to ends of trajectories: the ends are the flow's own, are computed once, and the loss is the distance to them."""

import pytest
import torch
from harness import survives
from points import mixture, network, settled, situation
from trajectories import run

from limbeck import randomness
from limbeck.engine.course import settle
from limbeck.methods.endpoints import Endpoints
from limbeck.models.toy import Mixture
from limbeck.randomness import fold


def drawn(method, where, rows=8):
    """The batch of an update."""
    batch = where.data.splits["train"].__getitems__(list(range(rows)))
    return next(method.learn(batch, None)).batch


@pytest.mark.parametrize("noise", ["flow", "ve"])
def test_the_ends_of_one_gaussian_are_known(noise):
    """Its flow ends at m + s / sqrt(alpha^2 s^2 + sigma^2) (x - alpha m)."""
    where = situation(Mixture([[0.7, -0.2]], 0.4, noise=noise), student=network(noise, classes=None))
    method = Endpoints(teacher_steps=400)
    settle(method, where)
    batch = drawn(method, where)
    t, x, m = batch["start"][0], batch["input"], torch.tensor([0.7, -0.2])
    n = where.student.model.noise
    own = n.alpha(t) * m
    end = m + 0.4 / (n.alpha(t) ** 2 * 0.16 + n.sigma(t) ** 2).sqrt() * (x - own)
    torch.testing.assert_close(batch["end"], end, atol=2e-3, rtol=2e-3)


def test_the_noise_of_a_row_is_its_own_and_its_end_is_computed_once():
    where, method = situation(), Endpoints(teacher_steps=3)
    settle(method, where)
    first = drawn(method, where)
    ids = where.data.splits["train"].__getitems__(list(range(8)))["id"]
    torch.testing.assert_close(first["input"], randomness.normal(fold(ids, 0x65), 2))
    assert method.known.sum() == 8

    def never(batch):
        raise AssertionError("solved again")

    method.solved = never
    again = drawn(method, where)
    assert torch.equal(first["end"], again["end"])
    with pytest.raises(AssertionError, match="solved again"):
        drawn(method, where, rows=9)


@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_the_loss_by_hand_and_guided_ends(distance):
    where, method = situation(), Endpoints(teacher_steps=1, guidance=2.0, distance=distance, c=0.1)
    settle(method, where)
    batch = drawn(method, where)
    c, u = (
        mixture().prediction(batch["input"], batch["start"], {"condition": k}).x0
        for k in (batch["label"], torch.full_like(batch["label"], 3))
    )
    torch.testing.assert_close(batch["end"], u + 2 * (c - u), rtol=1e-4, atol=1e-5)
    e = where.student.model.prediction(batch["input"], batch["start"], {"condition": batch["label"]}).x0 - batch["end"]
    expected = (e**2).mean() if distance == "l2" else ((e**2 + 0.01).sqrt() - 0.1).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_what_was_solved_survives_a_kill(tmp_path):
    course = survives(lambda: (Endpoints(teacher_steps=2), situation()), tmp_path)
    assert {"ends", "known"} <= course.methods[0].state_dict().keys()


def test_a_student_that_is_the_flows_end_loses_nothing():
    where = situation(Mixture([[0.7, 0.7]], 1e-4))
    method = Endpoints()
    settled(method, where)
    batch = drawn(method, where)
    torch.testing.assert_close(batch["end"], torch.full((8, 2), 0.7), atol=1e-3, rtol=0)


def test_a_run(tmp_path):
    result, _ = run("endpoints", tmp_path / "run")
    assert result["student"]["figures"]["evaluations"] == 1
