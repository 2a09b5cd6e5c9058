"""Sampling: against diffusers' schedulers, against closed forms of Gaussians, orders of accuracy, and what is refused."""

import math

import pytest
import torch

from limbeck.diffusion.noise import VE, VP, Flow, wide
from limbeck.diffusion.predictors import Prediction, target_of
from limbeck.diffusion.solvers import ddim, evaluations, heun, sample

MEAN, STD = 0.7, 0.4


def gaussian(noise):
    """The exact denoiser of N(MEAN, STD^2)."""

    def denoise(x, t):
        alpha, sigma = wide(noise.alpha(t), x), wide(noise.sigma(t), x)
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        return Prediction(x0, "x0", x, alpha, sigma)

    return denoise


def flowed(noise, x, t, s):
    """Where the probability flow of N(MEAN, STD^2) takes x from t to s: the standardised value is kept."""
    spread = [float(noise.alpha(z) ** 2 * STD**2 + noise.sigma(z) ** 2) ** 0.5 for z in (t, s)]
    return float(noise.alpha(s)) * MEAN + spread[1] / spread[0] * (x - float(noise.alpha(t)) * MEAN)


def times(noise, steps, low=0.05, high=0.9):
    return noise.at(torch.linspace(high, low, steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("noise", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_orders_of_accuracy_on_the_flow_of_a_gaussian(noise, solver, order):
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1)
    errors = []
    for steps in (64, 128):
        grid = times(noise, steps)
        found = sample(gaussian(noise), x, noise, grid, solver)
        errors.append(float((found - flowed(noise, x, grid[0], grid[-1])).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] < 0.05


@pytest.mark.parametrize("noise", [VP(zero_terminal=True), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_each_sample_of_a_batch_has_the_order_of_its_own_step(noise):
    """One sample that steps to no noise, or from no data, does not make Euler's steps of its neighbours'."""
    t = torch.stack([noise.at(torch.tensor(u, dtype=torch.float64)) for u in (0.6, 0.6, 1.0)])
    s = torch.stack([torch.zeros((), dtype=torch.float64), *(noise.at(torch.tensor(u, dtype=torch.float64)) for u in (0.4, 0.8))])  # fmt: skip
    x, denoise = torch.randn(3, 2, dtype=torch.float64), gaussian(noise)
    together = heun(x, denoise(x, t), noise, t, s, denoise)
    alone = [heun(x[i : i + 1], denoise(x[i : i + 1], t[i : i + 1]), noise, t[i : i + 1], s[i : i + 1], denoise) for i in range(3)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone))
    first = ddim(x, denoise(x, t), noise, t, s)
    assert torch.equal(together[0], first[0])
    assert not torch.allclose(together[1], first[1], rtol=1e-4)
    assert torch.equal(together[2], first[2]) is isinstance(noise, VP)
    assert torch.isfinite(together).all()


def test_a_step_of_ddim_is_euler_where_the_flow_is_straight():
    noise, x = Flow(), torch.randn(4, 3, dtype=torch.float64)
    t, s = torch.full((4,), 0.8, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    p = gaussian(noise)(x, t)
    torch.testing.assert_close(ddim(x, p, noise, t, s), x + (0.5 - 0.8) * p.velocity)


def test_a_step_of_ddim_is_euler_in_sigma_where_data_are_kept():
    noise, x = VE(), torch.randn(4, 3, dtype=torch.float64)
    t, s = torch.full((4,), 3.0, dtype=torch.float64), torch.full((4,), 1.0, dtype=torch.float64)
    p = gaussian(noise)(x, t)
    torch.testing.assert_close(ddim(x, p, noise, t, s), x + (1 - 3) * (x - p.x0) / 3)


@pytest.mark.parametrize("noise", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_stochastic_step_keeps_the_marginal_of_an_exactly_known_sample(noise, eta):
    """Of x0 known exactly (a point), x_s is alpha_s x0 + sigma_s N(0, 1), whatever share of the noise is fresh."""
    t, s = noise.at(torch.tensor([0.7, 0.4], dtype=torch.float64))
    point = torch.tensor([[2.0]], dtype=torch.float64)

    def at(eps, fresh):
        x_t = noise.alpha(t) * point + noise.sigma(t) * eps
        p = Prediction(point, "x0", x_t, wide(noise.alpha(t)[None], x_t), wide(noise.sigma(t)[None], x_t))
        return ddim(x_t, p, noise, t[None], s[None], eta, torch.tensor([[fresh]], dtype=torch.float64))

    middle, old, new = at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0)
    torch.testing.assert_close(middle, noise.alpha(s) * point)
    variance = (old - middle) ** 2 + (new - middle) ** 2
    torch.testing.assert_close(variance, (noise.sigma(s) ** 2).reshape(1, 1))
    if eta == 1:  # ancestral: the fresh part is the posterior q(x_s | x_t, x0)
        ratio = noise.alpha(t) / noise.alpha(s)
        posterior = (noise.sigma(s) / noise.sigma(t)) ** 2 * (noise.sigma(t) ** 2 - (ratio * noise.sigma(s)) ** 2)
        torch.testing.assert_close((new - middle) ** 2, posterior.reshape(1, 1))


def test_a_sampler_that_renoises_keeps_a_gaussian():
    noise = VE(most=10)
    generator = torch.Generator().manual_seed(0)

    def denoise(x, t):  # the exact consistency function: where the flow ends
        spread = (STD**2 + t[0] ** 2) ** 0.5
        return Prediction(
            MEAN + STD / spread * (x - MEAN), "x0", x, torch.ones(len(x), 1), t.reshape(-1, 1).to(x.dtype)
        )

    start = MEAN + (STD**2 + 100) ** 0.5 * torch.randn(40_000, 1, generator=generator)
    found = sample(
        denoise,
        start,
        noise,
        torch.tensor([10.0, 2.0, 0.5, 0.0]),
        "renoise",
        fresh=lambda step: torch.randn(40_000, 1, generator=generator),
    )
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(found.std()) == pytest.approx(STD, rel=0.02)


def run_theirs(scheduler, network, x, steps, fed):
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), fed(t))
        x = scheduler.step(out, t, x).prev_sample
    return x


def of_head(noise, head):
    """A network of diffusers that predicts `head` exactly."""
    exact = gaussian(noise)

    def network(x, t):
        p = exact(x.double(), torch.as_tensor(t).double().expand(len(x)))
        return target_of(head, p.x0, p.epsilon, p.alpha, p.sigma).to(x.dtype)

    return network


@pytest.mark.parametrize("head", ["epsilon", "v", "x0"])
def test_ddim_is_that_of_diffusers(head):
    diffusers = pytest.importorskip("diffusers")
    noise = VP()
    kind = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[head]
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, timestep_spacing="trailing", clip_sample=False)
    x = torch.randn(6, 2, dtype=torch.float64)
    theirs = run_theirs(scheduler, of_head(noise, head), x, 10, lambda t: t + 1)
    ours = sample(gaussian(noise), x, noise, noise.grid(10).double(), "ddim")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


def test_flows_are_sampled_as_diffusers_does():
    diffusers = pytest.importorskip("diffusers")
    for shift in (1.0, 3.0):
        noise = Flow(shift=shift)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        x = torch.randn(6, 2, dtype=torch.float64)
        sigmas = torch.linspace(1, 0, 9)[:-1].tolist()
        scheduler.set_timesteps(sigmas=sigmas)
        theirs, network = x, of_head(noise, "velocity")
        for t in scheduler.timesteps:
            theirs = scheduler.step(network(theirs, t / 1000), t, theirs).prev_sample
        ours = sample(gaussian(noise), x, noise, noise.grid(8).double(), "ddim")
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)


def test_heun_on_flows_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    noise, scheduler = Flow(), diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(6)
    x = torch.randn(6, 2, dtype=torch.float64)
    theirs, network = x, of_head(noise, "velocity")
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t / 1000), t, theirs).prev_sample
    grid = torch.cat([scheduler.sigmas[0:1], scheduler.sigmas[1::2]]).double()
    ours = sample(gaussian(noise), x, noise, grid, "heun")
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)


def test_edm_is_sampled_as_diffusers_does():
    diffusers = pytest.importorskip("diffusers")
    noise = VE(least=0.002, most=80)
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(10)
    x = 80 * torch.randn(6, 2, dtype=torch.float64)
    theirs = x
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i].double()
        p = gaussian(noise)(theirs, sigma.expand(6))
        scheduler.scale_model_input(theirs, t)
        raw = target_of("edm", p.x0, p.epsilon, p.alpha, p.sigma, 0.5)
        theirs = scheduler.step(raw, t, theirs).prev_sample
    ours = sample(gaussian(noise), x, noise, noise.grid(10).double(), "ddim")
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-4)


def test_many_steps_from_noise_end_in_the_data():
    for noise in (VP(), VE(), Flow()):
        z = torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        grid = noise.grid(40).double()
        start = z * noise.sigma(grid[:1])
        found = sample(gaussian(noise), start, noise, grid, "heun")
        assert float(found.mean()) == pytest.approx(MEAN, abs=0.04)
        assert float(found.std()) == pytest.approx(STD, rel=0.06)


def test_who_watches_sees_every_step():
    noise, seen = Flow(), []
    x = torch.randn(2, 1, dtype=torch.float64)
    end = sample(gaussian(noise), x, noise, noise.grid(3), "ddim", watch=lambda *step: seen.append(step))
    assert len(seen) == 3
    assert seen[0][0] is x
    assert seen[-1][2] is end
    torch.testing.assert_close(seen[-1][1].x0, end)


def test_how_many_evaluations():
    calls = []

    def counted(x, t):
        calls.append(1)
        return gaussian(noise)(x, t)

    noise = VE()
    for solver in ("ddim", "heun"):
        calls.clear()
        sample(counted, torch.randn(2, 1, dtype=torch.float64), noise, noise.grid(5), solver)
        assert len(calls) == evaluations(5, solver)
    assert evaluations(5, "heun", guided=True) == 18


def broken_below(noise, time):
    """A network whose answer is not finite from this time on."""

    def broken(x, t):
        p = gaussian(noise)(x, t)
        return Prediction(p.value / (t.reshape(-1, 1) > time), "x0", x, p.alpha, p.sigma)

    return broken


@pytest.mark.parametrize("solver", ["ddim", "heun", "renoise"])
def test_what_is_not_finite_is_said_with_its_step_its_time_and_who_said_it(solver):
    noise, x = Flow(), torch.ones(2, 1, dtype=torch.float64)
    pattern = r"step 3 of 4 \(time 0.5\), the student: its x0 is not finite; its input was finite"
    # Heun's second evaluation asks one step ahead
    where = (
        pattern
        if solver != "heun"
        else r"step 2 of 4 \(time 0.75\), the student: its x0 is finite, and the step made of it is not"
    )
    with pytest.raises(FloatingPointError, match=where):
        sample(
            broken_below(noise, 0.6), x, noise, noise.grid(4), solver, fresh=lambda step: torch.zeros_like(x), whose="the student"
        )  # fmt: skip
    with pytest.raises(FloatingPointError, match="step 1 of 4 .* not finite; its input was not finite either"):
        sample(gaussian(noise), x / 0, noise, noise.grid(4), "ddim")


def test_a_step_that_a_finite_answer_does_not_allow_is_said():
    """An epsilon head where nothing is left of the data: x0 would be (x - eps) / 0."""
    noise, x = Flow(), torch.ones(2, 1, dtype=torch.float64)

    def said(x, t):
        p = gaussian(noise)(x, t)
        return Prediction(p.epsilon + 1, "epsilon", x, p.alpha, p.sigma)

    with pytest.raises(FloatingPointError, match="step 1 of 2 .*its epsilon is finite, and the step made of it is not"):
        sample(said, x, noise, noise.grid(2), "ddim")


@pytest.mark.parametrize("solver", ["ddim", "heun", "renoise"])
def test_whether_all_was_finite_is_read_once_at_the_end(solver, monkeypatch):
    """Nothing asks the device in between: the number of readings does not grow with the steps."""
    noise, reads = Flow(), []
    for name in ("__bool__", "tolist", "item", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, plain=plain: reads.append(self.shape) or plain(self))
    x, counts = torch.ones(2, 1), []
    for steps in (2, 9):
        reads.clear()
        sample(gaussian(noise), x, noise, noise.grid(steps), solver, fresh=lambda step: torch.zeros_like(x))
        counts.append(len(reads))
    assert counts == [2, 2]  # the times, which lie on the CPU, and what was noted


def test_noise_is_asked_for():
    with pytest.raises(ValueError, match="fresh"):
        sample(gaussian(Flow()), torch.ones(1, 1), Flow(), Flow().grid(2), "renoise")
    with pytest.raises(ValueError, match="heun"):
        sample(gaussian(Flow()), torch.ones(1, 1), Flow(), Flow().grid(2), "euler2")
