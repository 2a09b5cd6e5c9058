"""VSD: the published loop, the gradient that is written in, Gaussians in closed form, a critic that begins as the teacher."""

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, in_double, mixture, network, same, settled, situation

from limbeck.diffusion.noise import VP, Flow
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.vsd import VSD
from limbeck.models.toy import Mixture


def guided(net, x_t, t, label, w):
    c, u = (net.prediction(x_t, t, {"condition": k}).epsilon for k in (label, torch.full_like(label, 3)))
    return u + w * (c - u)


def noised(x, t, eps):
    return (1 - t[:, None]) * x + t[:, None] * eps


def test_a_training_is_the_published_loop():
    def build():
        return VSD(guidance=2.0), situation(network(), lr=0.02)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R, fake = where.student.model, where.teacher.model, method.critic
    for batch in steps(where):
        label, n = batch["label"], len(batch["label"])
        torch.rand(n)  # guidance scales, all equal here
        z = torch.randn(n, 2)
        made = z - G(z, label, time=torch.ones(n))["prediction"]
        t, eps = 0.02 + 0.96 * torch.rand(n), torch.randn(n, 2)
        x_t = noised(made, t, eps).detach()
        g = (t[:, None] ** 2 * (guided(R, x_t, t, label, 2.0) - guided(fake, x_t, t, label, 2.0))).detach()
        kept = made.detach()
        descend(G.parameters(), (g * made).sum() / made.numel(), 0.02)  # d/dx0 = g / numel
        t, eps = torch.rand(n).clamp(1e-3, 1), torch.randn(n, 2)
        told = torch.where(torch.rand(n) < 0.1, 3, label)
        x_t = noised(kept, t, eps)
        said = x_t + (1 - t[:, None]) * fake(x_t, told, time=t)["prediction"]
        descend(fake.parameters(), ((1 - t) ** 2 * ((said - eps) ** 2).mean(1)).mean(), 10 * 0.02)
    same(course.situation.student.model, G)
    same(course.methods[0].critic, fake)


def ready(method, where):
    batch = settled(method, where)
    return batch | method.inputs(batch) | {"time": method.drawn(batch), "noise": method.fresh(batch)}


@pytest.mark.parametrize("rank", [None, 2])
def test_the_first_gradient_of_the_student_is_zero(rank):
    if rank:
        pytest.importorskip("peft")
    where, method = situation(network()), VSD(critic_lora=rank)
    method.student_loss(ready(method, where)).total().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in where.student.model.parameters())


@pytest.mark.parametrize("noise", [VP(), Flow()], ids=["vp", "flow"])
def test_for_gaussians_it_is_the_gradient_of_the_divergence(noise):
    """Samples N(b, s^2), teacher N(m, s^2): alpha / sigma^3 times the gradient is d KL(p_t || q_t) / d b = alpha^2 (b - m) / v, at every point."""
    b, m, s = 0.5, -0.25, 0.5
    with in_double():
        teacher, critic = (Mixture([[mean, mean]], s, noise=noise) for mean in (m, b))
        where, method = situation(teacher, student=network(noise, "x0", classes=None)), VSD(guidance=1.0)
        batch = ready(method, where)
        batch["time"] = batch["time"].double()
        method.fake.actor.model = method.fake.model = critic
        x0 = (b + s * torch.randn(8, 2)).requires_grad_()
        method.generated = lambda _: x0
        method.student_loss(batch).total().backward()
        alpha, sigma = noise.alpha(batch["time"])[:, None], noise.sigma(batch["time"])[:, None]
        mean = torch.tensor(b, requires_grad=True)
        v = alpha**2 * s**2 + sigma**2
        kl = (alpha * (mean - m)).square() / (2 * v)  # of two Gaussians of one variance
        expected = torch.stack([torch.autograd.grad(one, mean, retain_graph=True)[0] for one in kl.flatten()])
        found = 16 * x0.grad * alpha / sigma**3
        torch.testing.assert_close(found, expected[:, None].expand(8, 2), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_gradient_is_the_one_injected_over_the_number_of_elements(guidance):
    """g = sigma^2 (eps_R^w - eps_F^w), both guided, and nothing reaches teacher or critic."""
    with in_double():
        where, method = situation(network(), student=network()), VSD(guidance=guidance)
        batch = ready(method, where)
        with torch.no_grad():
            for p in method.critic.parameters():
                p.add_(0.1 * torch.randn_like(p))
        x0 = torch.randn(8, 2).requires_grad_()
        method.generated = lambda _: x0
        method.student_loss(batch).total().backward()
        t, label = batch["time"].double(), batch["label"]
        x_t = noised(x0.detach(), t, batch["noise"])
        real, fake = (guided(net, x_t, batch["time"], label, guidance) for net in (where.teacher.model, method.critic))
        g = t[:, None] ** 2 * (real - fake)
        torch.testing.assert_close(x0.grad, g.detach() / 16, rtol=1e-6, atol=1e-9)  # times are of single precision
        assert g.abs().min() > 0
        assert all(p.grad is None for p in (*method.critic.parameters(), *where.teacher.model.parameters()))


def test_a_critic_that_cannot_be_guided_is_refused():
    """The teacher is a formula with classes, and the student, which the critic begins as, has none."""
    where = situation(student=network(classes=None))
    with pytest.raises(RecipeError, match="guides its critic"):
        settle(VSD(guidance=2.0), where)


def test_a_critic_is_shown_nothing_where_its_condition_is_dropped():
    where, method = situation(network()), VSD()
    batch = ready(method, where) | {"generated": torch.randn(8, 2)}
    nothing = batch | {"drop": torch.ones(8, dtype=torch.bool)}
    other = {k: v.flip(0) if k.endswith("condition") else v for k, v in nothing.items()}
    assert method.critic_loss(nothing).total() == method.critic_loss(other).total()
    assert method.critic_loss(nothing).total() != method.critic_loss(batch).total()


def test_an_unconditional_teacher_drops_nothing(tmp_path):
    survives(
        lambda: (VSD(guidance=1.0), situation(mixture(classes=False), network(classes=None), optimizer="adamw")),
        tmp_path,
    )
