"""SIM: with the exact critic its gradient is that of the divergence, in double precision; where critic and teacher agree nothing is left."""

import numpy as np
import pytest
import torch
from points import in_double, network, points, settled, situation

from limbeck.diffusion.noise import VP, Flow
from limbeck.methods.sid import SiD
from limbeck.methods.sim import SIM
from limbeck.models.toy import Mixture

M, S, A, B = -0.25, 0.5, 0.75, 0.375  # teacher N(M, S^2), samples A z + B
NODES, WEIGHTS = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(64))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def gaussians(noise, **options):
    """The method with the exact teacher and critic, and samples of noise on a grid of quadrature nodes."""
    teacher, critic = (Mixture([[mean]], std, noise=noise) for mean, std in ((M, S), (B, A)))
    data = points()
    for split in data.splits.values():
        split.tensors["x"] = split.tensors["x"][:, :1].double()
    where = situation(teacher, student=network(noise, "x0", classes=None, dims=1), data=data)
    method = SIM(**options)
    settled(method, where)
    method.fake.actor.model = method.fake.model = critic
    z, eps = (n.flatten()[:, None] for n in torch.meshgrid(NODES, NODES, indexing="ij"))
    return method, {"time": noise.at(torch.tensor(0.5)).expand(len(z)), "noise": eps}, z


@pytest.mark.parametrize("noise", [VP(), Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize(("distance", "c"), [("square", 1.0), ("huber", 0.7)])
def test_with_the_exact_critic_it_is_the_gradient_of_the_divergence(noise, distance, c):
    """d/d(a, b) of E d(sigma (s_F - s_R)), the samples of the expectation held where they are."""
    with in_double():
        method, batch, z = gaussians(noise, distance=distance, c=c)
        leaf = torch.tensor([A, B], requires_grad=True)
        x0 = leaf[0] * z + leaf[1]
        weights = (WEIGHTS[:, None] * WEIGHTS).flatten()
        (found,) = torch.autograd.grad((weights * method.matching(x0, batch)).sum(), leaf)

        t = batch["time"][:1]
        alpha, sigma = noise.alpha(t), noise.sigma(t)

        def score(x_t, mean, std):
            return (alpha * mean - x_t) / (alpha**2 * std**2 + sigma**2)

        a, b = leaf
        x_t = (alpha * b + (alpha**2 * a**2 + sigma**2).sqrt() * NODES).detach()
        y = sigma * (score(x_t, b, a) - score(x_t, M, S))
        value = y.square() if distance == "square" else (y.square() + c**2).sqrt() - c
        (expected,) = torch.autograd.grad((WEIGHTS * value).sum(), leaf)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert expected.abs().min() > 1e-3


@pytest.mark.parametrize("method", [SIM(), SIM(distance="square"), SiD()], ids=["huber", "square", "sid"])
def test_where_critic_and_teacher_agree_loss_and_gradient_are_nothing(method):
    with in_double():
        where = situation(network(), student=network())
        method = type(method)(**method.options(all=False) | {"times": [0.3, 0.8]})
        batch = settled(method, where)  # the critic begins as the teacher
        batch = method.for_student(batch | method.inputs(batch))
        loss = method.student_loss(batch).total()
        loss.backward()
        assert loss == 0
        assert all(p.grad is None or p.grad.abs().max() < 1e-11 for p in where.student.model.parameters())


def test_the_square_is_sid_at_share_one_with_another_weight():
    """Per sample 2 nu / l^2 times as much, l = sigma / alpha."""
    with in_double():
        where = situation(student=network())
        ours, theirs = SIM(distance="square"), SiD(share=1.0)
        batch = settled(ours, where)
        settled(theirs, where)
        g = torch.Generator().manual_seed(0)
        x0, fake, real = torch.randn(3, 8, 2, generator=g)
        batch["time"] = torch.linspace(0.2, 0.9, 8)
        nu, level = (x0 - real).abs().mean(1), batch["time"] / (1 - batch["time"])
        found = ours.divergence(x0, fake, real, batch)
        torch.testing.assert_close(found, 2 * nu / level**2 * theirs.divergence(x0, fake, real, batch))
