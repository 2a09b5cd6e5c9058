"""SiD and SIM: the published loop with its order, and a gradient that goes through the frozen networks."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, network, same, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.methods.sid import SiD
from limbeck.methods.sim import SIM

METHODS = {"sid": SiD, "sim": SIM, "square": lambda **options: SIM(distance="square", **options)}


def noised(x, t, eps):
    return (1 - t[:, None]) * x + t[:, None] * eps


def written(name, x0, fake, real, t):
    """The student's loss as the papers have it, over the number of dimensions."""
    if name == "sid":
        nu = (x0 - real).abs().mean(1, keepdim=True).detach()
        return ((real - fake) * ((real - x0) - 1.2 * (real - fake)) / nu).mean()
    alpha, sigma = 1 - t[:, None], t[:, None]
    score_of = lambda d: alpha * d / sigma**2  # noqa: E731 - up to -x_t / sigma^2, which falls out of differences
    y, r = sigma * (score_of(fake) - score_of(real)), sigma * (score_of(fake) - score_of(x0))
    slope = 2 * y if name == "square" else y / (y.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return -(slope * r).mean()


@pytest.mark.parametrize("name", METHODS)
def test_a_training_is_the_published_loop(name):
    def build():
        return METHODS[name](times=[0.3, 0.8], critic_times="uniform", weighting="head"), situation(lr=0.005)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R, fake = where.student.model, where.teacher.model, method.critic
    for batch in steps(where):
        given, n = {"condition": batch["label"]}, len(batch["label"])
        one = torch.ones(n)
        made = G.prediction(torch.randn(n, 2), one, given).x0.detach()
        t, eps = torch.rand(n).clamp(1e-3, 1), torch.randn(n, 2)
        v = fake(noised(made, t, eps), batch["label"], time=t)["prediction"]
        descend(fake.parameters(), ((v - (eps - made)) ** 2).mean(), 0.005)
        made = G.prediction(torch.randn(n, 2), one, given).x0
        t, eps = 0.3 + 0.5 * torch.rand(n), torch.randn(n, 2)
        x_t = noised(made, t, eps)
        said, real = fake.prediction(x_t, t, given).x0, R.prediction(x_t, t, given).x0
        descend(G.parameters(), written(name, made, said, real, t), 0.005)
    same(course.situation.student.model, G)
    same(course.methods[0].critic, fake)


@pytest.mark.parametrize("name", METHODS)
def test_where_critic_and_teacher_agree_nothing_is_left(name):
    where, method = situation(network()), METHODS[name](times=[0.3, 0.8])
    batch = settled(method, where)  # the critic begins as the teacher
    batch |= method.inputs(batch) | {"time": method.drawn(batch), "noise": method.fresh(batch)}
    loss = method.student_loss(batch).total()
    loss.backward()
    assert loss == 0
    for p in where.student.model.parameters():
        assert p.grad is None or p.grad.abs().max() < 1e-4  # rounding, over c


def test_the_whole_state_survives_a_kill(tmp_path):
    survives(lambda: (SiD(), situation(optimizer="adamw", lr=1e-3, epochs=1)), tmp_path)
