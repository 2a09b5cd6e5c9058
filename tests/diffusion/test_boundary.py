"""Jumps, landings and the boundary: exact at no noise, inverse to a step, and the scalings of the published script."""

import pytest
import torch

from limbeck.actors import Student
from limbeck.diffusion.boundary import Bounded, jump, landing, scalings
from limbeck.diffusion.noise import VE, VP, Flow, wide
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.solvers import ddim
from limbeck.models.toy import PointDenoiser

NOISES = [VP(), VE(), Flow(), Flow(shift=3.0)]


def said(noise, x, t, x0):
    return Prediction(x0, "x0", x, wide(noise.alpha(t), x), wide(noise.sigma(t), x))


def test_at_no_noise_nothing_changes():
    skip, out = scalings(torch.zeros(1, dtype=torch.float64))
    assert (skip.item(), out.item()) == (1.0, 0.0)
    share = torch.tensor([1e-3, 0.02, 0.5, 1.0], dtype=torch.float64)
    skip, out = scalings(share)
    t = 1000 * share
    torch.testing.assert_close(skip, 0.25 / ((10 * t) ** 2 + 0.25))
    torch.testing.assert_close(out, 10 * t / ((10 * t) ** 2 + 0.25).sqrt())
    assert skip[0] < 0.003
    torch.testing.assert_close(out**2 + skip, torch.ones_like(out))


@pytest.mark.parametrize("head", ["velocity", "x0"])
def test_a_bounded_denoiser_is_between_its_input_and_its_answer(head):
    torch.manual_seed(0)
    actor = Student(PointDenoiser(width=8, head=head, noise="flow"))
    actor.look_at(["x"])
    x = torch.randn(4, 2)
    t = torch.tensor([0.0, 5e-5, 0.3, 1.0])
    plain, bounded = (kind(actor)(x, t) for kind in (Bounded.__mro__[1], Bounded))
    skip, out = (wide(v, x) for v in scalings(t))
    assert torch.equal(bounded.x0[0], x[0])
    torch.testing.assert_close(bounded.x0, skip * x + out * plain.x0)
    assert bounded.head == "x0"


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_a_landing_is_the_inverse_of_a_step(noise):
    g = torch.Generator().manual_seed(0)
    x, x0 = (torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t, s = noise.at(torch.full((5,), 0.8, dtype=torch.float64)), noise.at(torch.full((5,), 0.3, dtype=torch.float64))
    x_s = ddim(x, said(noise, x, t, x0), noise, t, s)
    torch.testing.assert_close(landing(x, x_s, noise, t, s), x0, rtol=1e-9, atol=1e-9)
    other = torch.randn(5, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        ddim(x, said(noise, x, t, landing(x, other, noise, t, s)), noise, t, s), other, rtol=1e-9, atol=1e-9
    )
    nothing = torch.zeros_like(s)
    torch.testing.assert_close(landing(x, other, noise, t, nothing), other)  # to no noise: the point itself


@pytest.mark.parametrize("noise", NOISES[:3], ids=lambda n: type(n).__name__)
def test_a_jump_stays_where_there_is_no_way_to_go_and_is_x0_at_the_end(noise):
    x, x0 = torch.randn(3, 2), torch.randn(3, 2)
    t = torch.stack([noise.at(torch.tensor(u)) for u in (0.6, 0.6, 0.2)])
    end = torch.stack([t[0], noise.at(torch.tensor(0.2)), torch.tensor(0.0)])
    asked = []

    def denoise(x, t):
        asked.append(t)
        return said(noise, x, t, x0)

    found = jump(denoise, x, t, end, noise)
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close(found[1:], ddim(x, said(noise, x, t, x0), noise, t, end)[1:])
    torch.testing.assert_close(found[2], x0[2])
    still = torch.zeros(3)
    assert torch.equal(jump(denoise, x, still, still, noise), x)
    assert (asked[-1] > 0).all()  # nobody is asked about no noise at all


def test_a_jumps_gradient_is_the_steps():
    noise, x, x0 = Flow(), torch.randn(2, 2), torch.randn(2, 2, requires_grad=True)
    t, e = torch.full((2,), 0.8), torch.full((2,), 0.2)
    jump(lambda x, t: said(noise, x, t, x0), x, t, e, noise).sum().backward()
    torch.testing.assert_close(x0.grad, torch.full((2, 2), 0.8 - 0.2 * 0.2 / 0.8))
