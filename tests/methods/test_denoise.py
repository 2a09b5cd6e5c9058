"""Denoising: the loop of the papers, weightings, exact denoisers lose nothing, dropped conditions, a teacher's answers."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, mixture, network, points, same, settled, situation

from limbeck.diffusion.noise import wide
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.denoise import Denoising


def drawn(batch, drop=0.1):
    """What the method draws for a batch, in its order: noise, times, drops."""
    noise = torch.randn(len(batch["x"]), 2)
    t = torch.rand(len(noise)).clamp(1e-3, 1)
    return noise, t, torch.rand(len(noise)) < drop


def test_a_training_is_flow_matching_as_one_would_write_it():
    plan, where = fresh(lambda: (Denoising(), situation(teacher=False)))
    course = Course(plan, where)
    course.run()

    method, where = fresh(lambda: (Denoising(), situation(teacher=False)))
    settle(method, where)
    net = where.student.model
    for batch in steps(where):
        eps, t, drop = drawn(batch)
        x_t = (1 - t[:, None]) * batch["x"] + t[:, None] * eps
        label = torch.where(drop, 3, batch["label"])
        v = net(x_t, label, time=t)["prediction"]
        descend(net.parameters(), ((v - (eps - batch["x"])) ** 2).mean())
    same(course.situation.student.model, net)


def test_a_training_survives_a_kill(tmp_path):
    survives(lambda: (Denoising(), situation(teacher=False, optimizer="adamw", lr=1e-2, ema=0.9)), tmp_path)


@pytest.mark.parametrize("weighting", ["head", "x0", "epsilon", "velocity", "v", "edm", "min-snr"])
@pytest.mark.parametrize("noise", ["vp", "ve", "flow"])
def test_a_student_that_is_the_teacher_loses_nothing_in_any_weighting(weighting, noise):
    where = situation(mixture(noise), student=network(noise))
    method = Denoising(weighting=weighting)
    batch = settled(method, where)
    method.generator.actor.model = method.generator.model = where.teacher.model
    batch |= {"noise": method.fresh(batch), "time": method.drawn(batch)}
    assert method.loss(batch).total().item() == pytest.approx(0, abs=1e-6)


def test_the_least_loss_against_data_is_the_posterior_variance():
    """Of N(m, s^2) the exact denoiser is left with s^2 sigma^2 / v, v = alpha^2 s^2 + sigma^2, and nothing can be below."""
    one = mixture(classes=False)
    one.means, one.std, one.log_weights = torch.zeros(1, 2), torch.tensor([0.5]), torch.zeros(1)
    where = situation(teacher=False, student=network(classes=None))
    method = Denoising(weighting="x0", drop=0.0)
    settled(method, where)
    method.generator.actor.model = method.generator.model = one
    n, t = 200_000, 0.4
    g = torch.Generator().manual_seed(0)
    batch = {
        "x0": 0.5 * torch.randn(n, 2, generator=g),
        "noise": torch.randn(n, 2, generator=g),
        "time": torch.full((n,), t),
    }
    expected = 0.25 * t**2 / ((1 - t) ** 2 * 0.25 + t**2)
    assert method.loss(batch).total().item() == pytest.approx(expected, rel=0.01)


def test_a_teachers_guided_answers_stand_in_the_place_of_data():
    where = situation()
    method = Denoising(guidance=2.5, weighting="x0", drop=0.0)
    batch = settled(method, where)
    batch |= {"noise": method.fresh(batch), "time": method.drawn(batch)}
    t, label = batch["time"], batch["label"]
    x_t = wide(1 - t, batch["x"]) * batch["x"] + wide(t, batch["x"]) * batch["noise"]
    R = where.teacher.model
    c, u = (R.prediction(x_t, t, {"condition": k}).x0 for k in (label, torch.full_like(label, 3)))
    own = where.student.model.prediction(x_t, t, {"condition": label}).x0
    expected = ((own - (u + 2.5 * (c - u))) ** 2).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_conditions_are_dropped_for_teacher_and_student_alike():
    where = situation()
    method = Denoising()
    batch = settled(method, where)
    batch |= {"noise": method.fresh(batch), "time": method.drawn(batch), "drop": torch.ones(8, dtype=torch.bool)}
    whole = method.loss(batch).total()
    other = {k: v.flip(0) if k.endswith("condition") else v for k, v in batch.items()}
    torch.testing.assert_close(method.loss(other).total(), whole)  # nobody looked at the labels


def test_the_student_is_sampled_as_it_says_afterwards():
    where = situation(teacher=False)
    settled(Denoising(sampling_steps=7, solver="ddim"), where)
    assert (where.student.model.sampling.steps, where.student.model.sampling.solver) == (7, "ddim")
    assert where.student.source.surgery[-1]["structure"]["steps"] == 7


def test_guidance_needs_a_teacher_that_knows_nothing_of_a_condition():
    where = situation(mixture(classes=False), student=network(classes=None))
    with pytest.raises(RecipeError, match="method.guidance=1"):
        settle(Denoising(guidance=2.0), where)


def test_unconditional_data_need_no_label():
    where = situation(teacher=False, student=network(classes=None), data=points())
    batch = settled(Denoising(), where)
    assert not any(name.startswith("student.") for name in batch)
