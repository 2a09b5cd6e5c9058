"""PSO: the published online loop, what it is at the start, its clip; both offline forms written out."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from harness import fresh, steps, survives
from points import descend, in_double, network, same, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.pso import PSO

REWARD = f"{__name__}:right_of"


def right_of(samples, batch):
    """Larger to the right."""
    return samples[:, 0]


def distilled(**train):
    """The student begins as its teacher."""
    torch.manual_seed(4)
    net = network()
    return situation(net, student=copy.deepcopy(net), **train)


def at(share, x):
    return torch.full((len(x),), share)


def test_a_training_is_the_published_loop():
    def build():
        return PSO(reward=REWARD, sampling_steps=3, beta=5.0), distilled(lr=0.02)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R, grid = where.student.model, where.teacher.model, [1.0, 2 / 3, 1 / 3]
    for step, batch in enumerate(steps(where)):
        given, n = {"condition": batch["label"]}, len(batch["label"])
        object.__setattr__(method, "progress", type(method.progress)(step=step, seed=5))
        pair = []
        for _ in range(2):
            states = [torch.randn(n, 2)]
            with torch.no_grad():
                for t, s in ((1.0, 2 / 3), (2 / 3, 1 / 3)):
                    x0 = G.prediction(states[-1], at(t, states[-1]), given).x0
                    states.append((1 - s) * x0 + s * torch.randn(n, 2))
                states.append(G.prediction(states[-1], at(1 / 3, states[-1]), given).x0)
            pair.append(states)
        y = (pair[0][-1][:, 0] - pair[1][-1][:, 0]).sign()
        order = torch.randperm(2, generator=torch.Generator().manual_seed(method.shared(2**31 - 1)))
        for j in order.tolist():
            t, s = grid[j], grid[j + 1]
            rho = []
            for states in pair:
                x, after = states[j], states[j + 1]
                error = [(after - (1 - s) * net.prediction(x, at(t, x), given).x0).square().mean(1) for net in (R, G)]
                rho.append(((error[0] - error[1]) / (2 * s**2)).exp().clamp(0.9, 1.1).log())
            descend(G.parameters(), -F.logsigmoid(5 * (y * rho[0] - y * rho[1])).mean(), 0.02)
    same(course.situation.student.model, G)


def first_update(**options):
    where, method = distilled(), PSO(reward=REWARD, **options)
    settle(method, where)
    play = method.learn(where.data.splits["train"].__getitems__(list(range(8))), method.progress)
    with torch.no_grad():
        return where, method, next(play).batch


def test_at_the_start_it_is_log_two_and_the_order_of_a_pair_does_not_matter():
    where, method, batch = first_update()
    assert method.online_loss(batch).total().item() == pytest.approx(math.log(2), rel=1e-6)
    with torch.no_grad():
        where.student.model.output.bias.add_(0.05)
    swapped = batch | {f"{n}_{i}": batch[f"{n}_{1 - i}"] for n in ("x", "next") for i in (0, 1)}
    swapped["better"] = -batch["better"]
    loss = method.online_loss(batch).total()
    assert loss.item() != pytest.approx(math.log(2), rel=1e-4)
    torch.testing.assert_close(method.online_loss(swapped).total(), loss)


@pytest.mark.parametrize(("change", "moves"), [("none", True), ("clipped", False), ("tie", False)])
def test_a_step_too_far_from_the_reference_and_a_tie_teach_nothing(change, moves):
    where, method, batch = first_update()
    if change == "clipped":
        with torch.no_grad():
            where.student.model.output.bias.add_(30.0)
    if change == "tie":
        batch["better"] = torch.zeros(8)
    method.online_loss(batch).total().backward()
    assert (where.student.model.output.bias.grad.abs().max() > 0).item() is moves


@pytest.mark.parametrize("better", [1.0, -1.0, 0.0])
def test_at_the_start_the_gradient_is_half_beta_times_the_preference(better):
    """d L / d rho_0 = -beta y / 2 = -d L / d rho_1, and d rho / d x0 = alpha_s (x_s - alpha_s x0) / sigma_s^2 over the dimensions."""
    with in_double():
        _, method, batch = first_update(sampling_steps=4, beta=7.0)
        batch["better"] = torch.full((8,), better)
        s = batch["after"].double()[:, None]
        answers = [torch.randn(8, 2, requires_grad=True) for _ in (0, 1)]

        def say(x, t, given):
            i = int(torch.equal(x, batch["x_1"]))
            return SimpleNamespace(x0=answers[i])

        method.generator, method.reference = say, say
        loss = method.online_loss(batch).total()
        assert loss.item() == pytest.approx(math.log(2), rel=1e-12)
        method.reference = lambda x, t, given: SimpleNamespace(x0=say(x, t, given).x0.detach())  # which does not learn
        found = torch.autograd.grad(method.online_loss(batch).total(), answers)
        for i, sign in ((0, 1.0), (1, -1.0)):
            slope = (1 - s) * (batch[f"next_{i}"] - (1 - s) * answers[i]) / s**2 / 2
            torch.testing.assert_close(found[i], (-7.0 * better / 2 * sign * slope / 8).detach(), rtol=1e-6, atol=1e-9)


def test_a_reward_that_is_no_number_per_sample_is_refused_before_the_first_step():
    with pytest.raises(RecipeError, match=r"of_all. gave a Tensor \[\] for 16 samples"):
        settle(PSO(reward=f"{__name__}:of_all", sampling_steps=2), distilled())


def of_all(samples, batch):
    """One number for all."""
    return samples.mean()


@pytest.mark.parametrize("form", ["ratio", "hinge"])
def test_offline_pairs_are_data_and_samples_of_the_reference(form):
    where, method = distilled(), PSO(offline=form, sampling_steps=2, weighting="x0", k=0.2, prior=0.3)
    settled(method, where)
    with torch.no_grad():
        play = method.learn(where.data.splits["train"].__getitems__(list(range(8))), method.progress)
        batch = next(play).batch
        where.student.model.output.bias.add_(0.1)
    assert set(batch["time"].tolist()) == {0.5, 1.0}
    t, eps, given = batch["time"], batch["noise"], {"condition": batch["label"]}

    def error(net, x):
        x_t = (1 - t[:, None]) * x + t[:, None] * eps
        return (net.prediction(x_t, t, given).x0 - x).square().mean(1)

    G, R = where.student.model, where.teacher.model
    win, lose = (error(G, batch[n]) for n in ("x", "worse"))
    usual = error(R, batch["x"]) - 0.2 * error(R, batch["worse"])
    gap = win - 0.2 * lose
    value = -F.logsigmoid(5 * (usual - gap)) if form == "ratio" else F.relu(1 + 5 * gap)
    torch.testing.assert_close(method.offline_loss(batch).total(), (value + 0.3 * lose).mean())


def test_one_step_has_nothing_random_to_learn_from():
    with pytest.raises(RecipeError, match="sampling_steps"):
        settle(PSO(reward=REWARD, sampling_steps=1), distilled())


def test_a_run_survives_a_kill(tmp_path):
    survives(lambda: (PSO(reward=REWARD, sampling_steps=2), distilled(optimizer="adamw", lr=1e-3, epochs=1)), tmp_path)
