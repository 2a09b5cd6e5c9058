"""TDM: the published loop, the importance weight in closed form, the last state is distribution matching."""

import pytest
import torch
from harness import fresh, steps, survives
from hypothesis import given
from hypothesis import strategies as st
from points import descend, in_double, mixture, network, same, settled, situation

from limbeck.diffusion.noise import to_noise
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.dmd2 import DMD2
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
        known = {"condition": label}
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
        said = fake.prediction(noised(kept, direction, mid, t, xi), t, known).x0
        snr = ((1 - t) / t).square().clamp(max=5)
        descend(fake.parameters(), (omega * snr * (said - kept).square().mean(1)).mean(), 5 * 0.01)
        t, xi = level()
        x_t = noised(kept, direction, mid, t, xi)
        real = R.prediction(x_t, t, known).x0
        gap = (fake.prediction(x_t, t, known).x0 - real) / (kept - real).abs().mean(1, keepdim=True)
        descend(G.parameters(), (2 * gap.detach() * x0).mean(), 0.01)
    same(course.situation.student.model, G)
    same(course.methods[0].critic, fake)


def test_the_last_state_is_matched_as_dmd_does():
    """There x_mid is x0 itself, and with the square the gradient on x0 is twice that of dmd2, at the same times with the same noise."""
    with in_double():
        where, found = situation(network(), student=network()), []
        torch.manual_seed(3)
        x0 = torch.randn(8, 2)
        for method in (TDM(distance="l2", guidance=2.0), DMD2(guidance=2.0)):
            batch = settled(method, where)
            batch |= method.inputs(batch, place=3) if isinstance(method, TDM) else {}
            found.append((method, batch, x0.clone().requires_grad_()))
        ours, batch, _ = found[0]
        batch |= ours.level(batch)
        assert (batch["end"] == 0).all()
        assert torch.equal(ours.noised(x0, batch), ours.noise.renoise(x0, batch["time"], batch["noise"]))
        for method, own, leaf in found:
            with torch.no_grad():
                for p, q in zip(method.critic.parameters(), found[0][0].critic.parameters()):
                    p.copy_(q + 0.1 * torch.randn_like(q) if method is ours else q)  # the same critics, not the teacher
            method.generated = lambda b, leaf=leaf: leaf
            method.student_loss(own | batch).total().backward()
        assert found[1][2].grad.abs().min() > 0
        torch.testing.assert_close(found[0][2].grad, 2 * found[1][2].grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("noise", ["flow", "vp", "ve"])
@given(data=st.data())
def test_going_on_to_more_noise_adds_some(noise, data):
    """beta^2 = sigma_t^2 - (alpha_t sigma_mid / alpha_mid)^2 >= 0 for t >= mid, 0 for t = mid; and x_t has all of sigma_t."""
    kind = to_noise(noise)
    mid, t = sorted(data.draw(st.floats(0, 0.999)) for _ in range(2))
    mid, t = (kind.at(torch.tensor([share], dtype=torch.float64)) for share in (mid, t))
    ratio = kind.alpha(t) / kind.alpha(mid)
    square = kind.sigma(t).square() - (ratio * kind.sigma(mid)).square()
    assert float(square) >= -1e-12 * float(kind.sigma(t).square())
    nothing, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    beta = kind.further(nothing, mid, t, one)
    torch.testing.assert_close(beta.square().flatten(), square.clamp(min=0), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_the_direction_is_the_students_own_noise(place):
    """input = alpha x0 + sigma eps for its answer x0: the eps of its own prediction."""
    with in_double():
        where, method = situation(student=network("vp", "v"), teacher=mixture("vp")), TDM(guidance=1.0)
        batch = settled(method, where)
        batch |= method.inputs(batch, place=place)
        said = method.generator(batch["input"], batch["start"], method.given(batch, "student"))
        torch.testing.assert_close(method.direction(said.x0, batch), said.epsilon, rtol=1e-9, atol=1e-9)


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
    with in_double():
        where, method = situation(network(), student=network()), TDM(distance=distance, guidance=1.0)
        batch = settled(method, where)
        batch = method.for_student(batch | method.inputs(batch))
        loss = method.student_loss(batch).total()
        loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in where.student.model.parameters())


def test_times_are_the_places_own_and_no_option():
    with pytest.raises(RecipeError, match="unknown key 'times'"):
        TDM(times=[0.2, 0.4])


def test_the_critic_survives_a_kill(tmp_path):
    survives(lambda: (TDM(sampling_steps=2), situation(optimizer="adamw", lr=1e-3, epochs=1)), tmp_path)
