"""Consistency distillation: the published loop with its target, exact trajectories, guided and second-order steps, the end of the way."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, mixture, network, same, settled, situation

from limbeck.diffusion.network import Conditional
from limbeck.diffusion.noise import wide
from limbeck.engine.course import Course, settle
from limbeck.methods.consistency import Consistency
from limbeck.models.toy import Mixture


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_training_is_the_published_loop(ema):
    def build():
        return Consistency(discretisation=5, ema=ema, guidance=2.0), situation()

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R = where.student.model, where.teacher.model
    target = method.target if ema else G
    for batch in steps(where):
        x, label, n = batch["x"], batch["label"], len(batch["x"])
        torch.rand(n)  # guidance scales
        interval = (torch.rand(n) * 5).long()
        eps = torch.randn(n, 2)
        t, s = 1 - interval / 5, 1 - (interval + 1) / 5
        x_t = wide(1 - t, x) * x + wide(t, x) * eps
        c, u = (R.prediction(x_t, t, {"condition": k}) for k in (label, torch.full_like(label, 3)))
        velocity = u.velocity + 2 * (c.velocity - u.velocity)
        x_s = x_t + wide(s - t, x) * velocity
        with torch.no_grad():
            end = target.prediction(x_s, s.clamp(min=1e-3), {"condition": label}).x0
            end = torch.where(wide(s, x) > 1e-9, end, x_s)
        descend(G.parameters(), ((G.prediction(x_t, t, {"condition": label}).x0 - end) ** 2).mean())
        if ema:
            for a, b in zip(target.parameters(), G.parameters()):
                a.data = ema * a.data + (1 - ema) * b.data
    same(course.situation.student.model, G)
    if ema:
        same(course.methods[0].target, target)


def test_student_and_target_survive_a_kill(tmp_path):
    course = survives(lambda: (Consistency(), situation(optimizer="adamw", lr=1e-2)), tmp_path)
    assert any(name.startswith("target.") for name in course.methods[0].state_dict())


class Ends(Conditional):
    """The exact consistency function of N(m, s^2): where the probability flow ends."""

    def __init__(self, mean, std, noise):
        super().__init__(noise, "x0")
        self.mean, self.std = mean, std

    def predict(self, x, t, **given):
        alpha, sigma = wide(self.noise.alpha(t), x), wide(self.noise.sigma(t), x)
        return self.mean + self.std / (alpha**2 * self.std**2 + sigma**2).sqrt() * (x - alpha * self.mean)


def exactly(method, noise, steps_, std=0.4):
    """The method with an exact teacher and an exact student of one Gaussian, and a batch."""
    where = situation(Mixture([[0.7, 0.7]], std, noise=noise), student=network(noise, "v", classes=None))
    batch = settled(method, where)
    method.generator.actor.model = method.generator.model = Ends(0.7, std, noise)
    fine = method.noise.grid(steps_)
    g = torch.Generator().manual_seed(0)
    n = 4096
    x0 = 0.7 + std * torch.randn(n, 2, generator=g)
    # not the last interval: there the end is the point itself, and what is left is the step's own error
    i = torch.randint(0, steps_ - 1, (n,), generator=g)
    return {
        **{k: v for k, v in batch.items() if k == "none"},
        "x0": x0,
        "noise": torch.randn(n, 2, generator=g),
        "time": fine[i],
        "before": fine[i + 1],
    }


@pytest.mark.parametrize(("solver", "order"), [("ddim", 2), ("heun", 3)])
def test_an_exact_student_loses_what_the_teachers_step_errs(solver, order):
    """The local error of a solver of order p is O(h^(p+1)), so the root of the loss falls by 2^(p+1) at half the step."""
    losses = []
    for n in (40, 80):
        method = Consistency(discretisation=n, ema=0.0, teacher_solver=solver)
        losses.append(method.loss(exactly(method, "flow", n)).total().sqrt().item())
    assert losses[0] < 0.01
    assert losses[0] / losses[1] == pytest.approx(2**order, rel=0.35)


def test_a_row_at_the_end_of_its_way_leaves_its_neighbours_their_second_order():
    """In one batch: the last interval ends at no noise, where the step is of first order, and the others are stepped as they are alone."""
    where, method = situation(), Consistency(ema=0.0, teacher_solver="heun")
    batch = settled(method, where)
    x, t, s = torch.randn(8, 2), torch.full((8,), 0.5), torch.tensor([0.0, 0.4] * 4)
    found, alone = method.step(x, t, s, batch), method.step(x, t, torch.full((8,), 0.4), batch)
    torch.testing.assert_close(found[1::2], alone[1::2])
    euler = Consistency(ema=0.0)
    settled(euler, where)
    first = euler.step(x, t, s, batch)
    torch.testing.assert_close(found[::2], first[::2])
    assert (found[1::2] - first[1::2]).abs().max() > 1e-4


def test_teacher_and_student_that_know_one_point_lose_nothing():
    for noise in ("flow", "vp", "ve"):
        method = Consistency(ema=0.0)
        batch = exactly(method, noise, 50, std=1e-4)
        assert method.loss(batch).total().item() == pytest.approx(0, abs=1e-5)


def test_at_the_end_of_the_way_the_target_is_the_point_itself():
    where, method = situation(), Consistency(ema=0.0)
    batch = settled(method, where)
    x, s = torch.randn(8, 2), torch.tensor([0.0, 0.5] * 4)
    found = method.end(x, s, batch)
    assert torch.equal(found[::2], x[::2])
    assert not torch.equal(found[1::2], x[1::2])


def test_distances():
    where = situation()
    for distance in ("l2", "huber"):
        method = Consistency(ema=0.0, distance=distance, c=0.1)
        batch = settled(method, where)
        batch |= {"noise": torch.randn(8, 2), "time": torch.full((8,), 0.6), "before": torch.full((8,), 0.5)}
        x_t = 0.4 * batch["x"] + 0.6 * batch["noise"]
        given = {"condition": batch["label"]}
        G = where.student.model
        e = G.prediction(x_t, batch["time"], given).x0 - method.end(
            method.step(x_t, batch["time"], batch["before"], batch), batch["before"], batch
        )
        expected = (e**2).mean() if distance == "l2" else ((e**2 + 0.01).sqrt() - 0.1).mean()
        torch.testing.assert_close(method.loss(batch).total(), expected)


def test_no_gradient_enters_the_target():
    where, method = situation(), Consistency(ema=0.9)
    batch = settled(method, where)
    batch |= {"noise": torch.randn(8, 2), "time": torch.full((8,), 0.6), "before": torch.full((8,), 0.5)}
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert where.student.model.output.weight.grad is not None


def test_a_target_that_follows_at_once_is_the_student_and_one_that_never_does_stays():
    where = situation(mixture())
    method = Consistency(ema=0.5)
    settled(method, where)
    before = [p.clone() for p in method.target.parameters()]
    with torch.no_grad():
        for p in where.student.model.parameters():
            p.add_(1.0)
    method.follow(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, method.target.parameters()))
    method.follow(0.0)
    same(method.target, where.student.model)
