"""TDM: the published loop, the importance weight in closed form, the last state is distribution matching."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, network, same, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.methods.tdm import TDM


def noised(x0, eps, mid, t, xi):
    """The flow's x_mid on the student's trajectory, and from there on with fresh noise."""
    alpha = (1 - t) / (1 - mid)
    beta = (t**2 - (alpha * mid) ** 2).clamp(min=0).sqrt()
    x_mid = (1 - mid)[:, None] * x0 + mid[:, None] * eps
    return alpha[:, None] * x_mid + beta[:, None] * xi


def test_a_training_is_the_published_loop():
    def build():
        return TDM(sampling_steps=2, guidance=1.0, distance="l2"), situation(lr=0.01)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R, fake = where.student.model, where.teacher.model, method.critic
    for batch in steps(where):
        label, n = batch["label"], len(batch["label"])
        given = {"condition": label}
        z = torch.randn(n, 2)
        second = torch.rand(n) >= 0.5
        with torch.no_grad():
            halfway = z - 0.5 * G(z, label, time=torch.ones(n))["prediction"]
        start = torch.where(second, 0.5, 1.0)
        mid = start - 0.5
        state = torch.where(second[:, None], halfway, z)

        def level(mid=mid, start=start, n=n):
            low = mid.clamp(min=0.02)
            t = low + (start - 0.01 - low) * torch.rand(n)
            return t, torch.randn(n, 2)

        v = G(state, label, time=start)["prediction"]
        x0, eps = state - start[:, None] * v, state + (1 - start)[:, None] * v
        kept, direction = x0.detach(), eps.detach()
        t, xi = level()
        alpha = (1 - t) / (1 - mid)
        m = ((alpha * mid)[:, None] * direction + (t**2 - (alpha * mid) ** 2).sqrt()[:, None] * xi) / t[:, None]
        omega = (-0.5 * m.square().mean(1)).exp() / (-0.5 * xi.square().mean(1)).exp()
        said = fake.prediction(noised(kept, direction, mid, t, xi), t, given).x0
        snr = ((1 - t) / t).square().clamp(max=5)
        descend(fake.parameters(), (omega * snr * (said - kept).square().mean(1)).mean(), 0.01)
        t, xi = level()
        x_t = noised(kept, direction, mid, t, xi)
        real = R.prediction(x_t, t, given).x0
        gap = (fake.prediction(x_t, t, given).x0 - real) / (kept - real).abs().mean(1, keepdim=True)
        descend(G.parameters(), (2 * gap.detach() * x0).mean(), 0.01)
    same(course.situation.student.model, G)
    same(course.methods[0].critic, fake)


def test_the_last_state_is_matched_as_dmd_does():
    where, method = situation(), TDM(distance="l2", guidance=1.0)
    batch = settled(method, where)
    batch |= method.inputs(batch, place=3)
    batch |= method.level(batch)
    assert (batch["end"] == 0).all()
    x0, t, given = method.generated(batch).detach(), batch["time"], {"condition": batch["label"]}
    x_t = (1 - t[:, None]) * x0 + t[:, None] * batch["noise"]
    real, fake = (net.prediction(x_t, t, given).x0 for net in (where.teacher.model, method.critic))
    expected = ((fake - real).square().mean(1) / (x0 - real).abs().mean(1)).mean()
    torch.testing.assert_close(method.student_loss(batch).total(), expected)


@pytest.mark.parametrize("separate", [True, False])
def test_scores_are_compared_inside_the_samples_own_stretch(separate):
    where, method = situation(), TDM(separate=separate)
    batch = settled(method, where)
    batch = {k: v.repeat(200, *[1] * (v.dim() - 1)) for k, v in batch.items()}
    batch |= method.inputs(batch)
    t = method.level(batch)["time"]
    assert (t >= batch["end"]).all()
    assert sorted(batch["start"].unique().tolist()) == [0.25, 0.5, 0.75, 1.0]
    assert bool((t <= batch["start"] - 0.01 + 1e-6).all()) is separate


@pytest.mark.parametrize("distance", ["l2", "huber"])
def test_where_critic_and_teacher_agree_nothing_is_left(distance):
    where, method = situation(network()), TDM(distance=distance, guidance=1.0)
    batch = settled(method, where)
    batch |= method.inputs(batch)
    method.student_loss(batch | method.level(batch)).total().backward()
    for p in where.student.model.parameters():
        assert p.grad is None or p.grad.abs().max() < 1e-4


def test_the_critic_survives_a_kill(tmp_path):
    survives(lambda: (TDM(sampling_steps=2), situation(optimizer="adamw", lr=1e-3, epochs=1)), tmp_path)
