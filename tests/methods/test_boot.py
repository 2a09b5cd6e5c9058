"""BOOT: the signal's step is DDIM's, the loss by hand, constants lose nothing, the boundary, no data, a run."""

from itertools import pairwise

import pytest
import torch
from harness import survives
from points import in_double, mixture, network, settled, situation
from trajectories import play, run

from limbeck.actors import Student
from limbeck.diffusion.noise import VE, VP, Flow
from limbeck.diffusion.solvers import ddim
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods.boot import BOOT, kept, signal
from limbeck.models.toy import Mixture

NOISES = [VP(), VE(), Flow()]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_steps_of_the_signal_are_ddims_steps(noise):
    """x = alpha y + sigma eps all along the way, to machine precision, down to no noise."""
    R = Mixture([[0.7, -0.2], [-0.5, 0.1]], 0.4, noise=noise).double()
    g = torch.Generator().manual_seed(0)
    eps, y = (torch.randn(5, 2, generator=g, dtype=torch.float64) for _ in range(2))
    times = [*noise.at(torch.linspace(0.95, 0.05, 8, dtype=torch.float64)).tolist(), 0.0]
    x = noise.renoise(y, torch.full((5,), times[0], dtype=torch.float64), eps)
    for t, s in pairwise(times):
        t, s = (torch.full((5,), v, dtype=torch.float64) for v in (t, s))
        said = R.prediction(x, t, {})
        x = ddim(x, said, noise, t, s)
        y = signal(y, R.prediction(noise.renoise(y, t, eps), t, {}).x0, noise, t, s)
        torch.testing.assert_close(x, noise.renoise(y, s, eps), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x, y)


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_what_is_kept_of_a_signal(noise):
    t = noise.at(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(kept(noise, t, t), torch.ones_like(t))
    assert (kept(noise, t, torch.zeros_like(t)) == 0).all()
    s = noise.at(torch.tensor([0.05, 0.4, 0.2], dtype=torch.float64))
    assert ((kept(noise, t, s) > 0) & (kept(noise, t, s) < 1)).all()
    torch.testing.assert_close(kept(noise, t, s) * kept(noise, s, s / 2), kept(noise, t, s / 2))


def with_time(where):
    """A student that has learnt to hear the time to arrive at."""
    layer = where.student.model.numbers.layers["until"]
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_loss_by_hand(guidance):
    where, method = situation(), BOOT(step=0.1, boundary_weight=0.3, guidance=guidance)
    batch = settled(method, where)
    with_time(where)
    t, eps, label = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), torch.randn(8, 2), batch["label"]
    batch |= {"time": t, "noise": eps}

    def ours_at(u):
        return where.student.model.prediction(eps, torch.ones(8), {"condition": label, "until": u}).x0

    def theirs_of(x, t):
        c, u = (where.teacher.model.prediction(x, t, {"condition": k}).x0 for k in (label, torch.full_like(label, 3)))
        return u + guidance * (c - u)

    s = t - 0.1
    s[0] = 0
    kappa = (s * (1 - t) / (t * (1 - s)))[:, None]
    y = ours_at(t).detach()
    target = y + (1 - kappa) * (theirs_of((1 - t[:, None]) * y + t[:, None] * eps, t) - y)
    first = (((ours_at(s) - target) / (1 - kappa)) ** 2).mean()
    second = ((ours_at(torch.ones(8)) - theirs_of(eps, torch.ones(8))) ** 2).mean()
    torch.testing.assert_close(method.loss(batch).total(), first + 0.3 * second, rtol=1e-3, atol=1e-4)
    ours = torch.autograd.grad(method.loss(batch).total(), where.student.model.output.weight)[0]
    theirs = torch.autograd.grad(first + 0.3 * second, where.student.model.output.weight)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noise", ["vp", "ve", "flow"])
def test_a_constant_loses_nothing(noise):
    with in_double():
        where = situation(Mixture([[0.75, -0.25]], 0.0, noise=noise), student=network(noise, "x0", classes=None))
        method = BOOT()
        settled(method, where)
        with torch.no_grad():
            where.student.model.output.weight.zero_()
            where.student.model.output.bias.copy_(torch.tensor([0.75, -0.25]))
        (update,) = play(method, where.data.splits["train"].__getitems__(list(range(8))))
        assert method.loss(dict(update.batch)).total().item() == pytest.approx(0, abs=1e-25)
        with torch.no_grad():
            where.student.model.output.bias.add_(1.0)  # another constant is neither consistent nor bounded
        loss = method.loss(dict(update.batch))
        means = {name: (part.sum / part.count).item() for name, part in loss.parts.items()}
        assert means == pytest.approx({"boundary": 1.0, "bootstrap": 1.0}, rel=1e-12)


def test_a_student_that_begins_as_the_teacher_begins_at_the_boundary():
    teacher = network()
    where = situation(teacher, student=network())
    where.student.model.load_state_dict(teacher.state_dict())
    method = BOOT()
    batch = settled(method, where)
    batch |= {"time": torch.full((8,), 0.5), "noise": torch.randn(8, 2)}
    loss = method.loss(batch)
    assert loss.parts["boundary"].sum.item() == 0
    assert loss.parts["bootstrap"].sum.item() > 0


def test_sampled_in_one_step_it_arrives_at_no_noise():
    where, method = situation(), BOOT()
    batch = settled(method, where)
    with_time(where)
    z = torch.randn(8, 2)
    batch |= {"time": torch.ones(8), "noise": z}
    made = where.student.model.generate(z, {"condition": batch["label"]})
    torch.testing.assert_close(made, method.arriving(torch.zeros(8), batch))
    assert not torch.equal(made, method.arriving(torch.full((8,), 0.5), batch))


def test_no_data_are_needed_but_conditions():
    where, method = situation(), BOOT(guidance=1.5)
    settle(method, where)
    for actor in (where.student, where.teacher):
        actor.view = type(actor.view)(condition="label", id="id")
    (update,) = play(method, {"label": torch.tensor([0, 1, 2]), "id": torch.arange(3)})
    assert "x0" not in update.batch
    assert torch.isfinite(method.loss(dict(update.batch)).total())


@pytest.mark.parametrize("noise", ["vp", "ve", "flow"])
def test_times_leave_room_for_a_step(noise):
    where = situation(mixture(noise), student=network(noise, "x0"))
    method = BOOT(step=0.25)
    settled(method, where)
    method.uniform = lambda batch: torch.linspace(0, 0.999, 8)
    (update,) = play(method, where.data.splits["train"].__getitems__(list(range(8))))
    share = method.noise.share(update.batch["time"])
    assert float(share.min()) == pytest.approx(0.25, abs=1e-3)
    assert torch.isfinite(method.loss(dict(update.batch)).total())


def test_times_say_where_the_student_learns():
    """Of the way from one step above no noise to the start: the noisier half."""
    where, method = situation(), BOOT(step=0.25, times=[0.5, 1.0])
    settled(method, where)
    rows = where.data.splits["train"].__getitems__(list(range(8)))
    for number, least in ((0.0, 0.25 + 0.75 * 0.5), (0.999999, 1.0)):
        method.uniform = lambda batch, number=number: torch.full((8,), number)
        (update,) = play(method, rows)
        assert update.batch["time"].tolist() == pytest.approx([least] * 8, abs=1e-5)


def test_it_takes_one_step_and_a_step_inside_the_noise():
    with pytest.raises(RecipeError, match="sampling_steps"):
        BOOT(sampling_steps=2)
    with pytest.raises(RecipeError, match="must lie inside"):
        settle(BOOT(step=0.5, start=0.5), situation())


def test_what_hears_the_time_survives_a_kill(tmp_path):
    survives(lambda: (BOOT(), situation(optimizer="adamw", lr=1e-2, epochs=1)), tmp_path)


def test_a_run_ships_a_student_that_arrives(tmp_path):
    result, made = run({"use": "boot", "guidance": 1.5}, tmp_path / "run")
    assert result["student"]["figures"]["evaluations"] == 1
    student = Student(made.folder)
    assert student.model.numbers.defaults == {"until": 0.0}
