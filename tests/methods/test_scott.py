"""SCott: the stochastic teacher's mean and variance, LCM without it, the hinge game on clean samples, a constant teacher, a run."""

import pytest
import torch
from harness import survives
from points import in_double, network, settled, situation
from torch.nn import functional as F
from trajectories import instead, play, run

from limbeck.diffusion.noise import VE, VP, Flow
from limbeck.diffusion.solvers import ddim
from limbeck.methods.lcm import LCM
from limbeck.methods.scott import SCott
from limbeck.models.toy import Mixture


def at(batch, t, s):
    return batch | {"noise": torch.randn(8, 2), "time": torch.full((8,), t), "before": torch.full((8,), s)}


def exact(noise="flow", **options):
    """SCott with one Gaussian for a teacher."""
    where = situation(Mixture([[0.7, -0.2]], 0.4, noise=noise), student=network(noise, "x0", classes=None))
    method = SCott(guidance=1.0, **{"gan_weight": 0.0} | options)
    return method, settled(method, where)


@pytest.mark.parametrize("noise", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_one_step_has_the_variance_of_ancestral_sampling_times_eta(noise, eta):
    """x_s = mean + nu xi exactly, nu^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2): the schedule's own (Markov) variance."""
    with in_double():
        method, _ = exact(noise, substeps=1, eta=eta)
        t, s = (noise.nearest(noise.at(torch.full((3,), u))) for u in (0.6, 0.4))
        x, kicks = torch.randn(3, 2), torch.randn(3, 1, 2)
        found, middle = (method.step(x, t, s, {"kicks": k}) for k in (kicks, 0 * kicks))
        alpha_t, sigma_t, alpha_s, sigma_s = (float(f(z[0])) for z in (t, s) for f in (noise.alpha, noise.sigma))
        nu = eta * sigma_s / sigma_t * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2) ** 0.5
        if isinstance(noise, VP):
            assert nu == pytest.approx(eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2) ** 0.5, rel=1e-9)
        torch.testing.assert_close(found - middle, nu * kicks[:, 0], rtol=1e-9, atol=1e-12)
        said = method.taught(x, t, {})
        torch.testing.assert_close(middle, alpha_s * said.x0 + (sigma_s**2 - nu**2) ** 0.5 * said.epsilon)


def test_without_noise_a_sub_step_is_ddim_and_one_of_them_is_lcm():
    method, batch = exact(substeps=3, eta=0.0)
    x, t, s = torch.randn(8, 2), torch.full((8,), 0.6), torch.full((8,), 0.3)
    expected = x
    for here, there in ((0.6, 0.5), (0.5, 0.4), (0.4, 0.3)):
        here, there = torch.full((8,), here), torch.full((8,), there)
        expected = ddim(expected, method.taught(expected, here, batch), method.noise, here, there)
    torch.testing.assert_close(method.step(x, t, s, batch), expected)
    where = situation()
    options = {"guidance": [1.5, 3.0], "ema": 0.0}
    ours, theirs = SCott(substeps=1, eta=0.0, gan_weight=0.0, **options), LCM(**options)
    batch = at(settled(ours, where), 0.6, 0.5)
    settled(theirs, where)
    assert "kicks" not in batch
    torch.testing.assert_close(ours.loss(batch).total(), theirs.loss(batch).total())


def test_sub_steps_have_noise_of_their_own_and_end_where_they_should():
    method, batch = exact(substeps=3, eta=1.0)
    assert batch["kicks"].shape == (8, 3, 2)
    x, t = torch.randn(8, 2), torch.full((8,), 0.6)
    found = method.step(x, t, torch.zeros(8), batch)  # the last sub-step arrives at no noise, and draws none
    other = batch | {"kicks": torch.cat([batch["kicks"][:, :2], torch.randn(8, 1, 2)], 1)}
    torch.testing.assert_close(method.step(x, t, torch.zeros(8), other), found)
    other = batch | {"kicks": torch.cat([torch.randn(8, 1, 2), batch["kicks"][:, 1:]], 1)}
    assert (method.step(x, t, torch.zeros(8), other) - found).abs().min() > 0


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_constant_teacher_can_be_followed_without_loss(eta):
    with in_double():
        method, batch = exact(eta=eta, ema=0.0)
        point = Mixture([[0.5, 0.5]], 0.0)
        instead(method.reference, point)
        instead(method.generator, point)
        method.uniform = lambda batch: torch.linspace(0, 0.95, 8)  # the last interval ends at the data themselves
        (update,) = play(method, batch)
        loss = method.loss(dict(update.batch)).total().item()
    assert loss == pytest.approx(0, abs=1e-10)  # what is left is the boundary's c_skip x


def test_the_game_is_hinge_on_clean_samples():
    where, method = situation(), SCott(guidance=1.5, ema=0.0)
    batch = at(settled(method, where), 0.6, 0.5)
    batch["generated"] = method.ended(batch).detach()
    given = {"condition": batch["label"]}
    real, fake = (method.judge(x, batch["time"], given) for x in (batch["x"], batch["generated"]))
    expected = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    torch.testing.assert_close(method.judge_loss(batch).total(), expected)
    loss, plain = method.loss(batch), LCM.__mro__[1].loss(method, batch)
    torch.testing.assert_close(loss.total(), plain.total() - 0.4 * fake.mean())
    before = torch.autograd.grad(plain.total(), where.student.model.output.weight)[0]
    loss.total().backward()
    assert not torch.allclose(where.student.model.output.weight.grad, before)


def test_student_and_judge_play_in_turn_and_survive_a_kill(tmp_path):
    where, method = situation(), SCott(guidance=1.5)
    settled(method, where)
    updates = play(method, where.data.splits["train"].__getitems__([0, 1, 2]))
    assert [u.trainee for u in updates] == ["student", "judge"]
    assert torch.equal(updates[1].batch["generated"], method.ended(dict(updates[0].batch)))
    course = survives(lambda: (SCott(guidance=[1.5, 2.0]), situation(optimizer="adamw", lr=1e-2, epochs=1)), tmp_path)
    names = {name.split(".")[0] for name in course.methods[0].state_dict()}
    assert names == {"target", "critic", "judge"}


def test_a_low_rank_judge():
    pytest.importorskip("peft")
    where, method = situation(network()), SCott(guidance=1.5, judge_lora=2)
    settled(method, where)
    own = sum(p.numel() for p in method.critic)
    assert 0 < own < sum(p.numel() for p in where.teacher.model.parameters())


def test_a_run(tmp_path):
    method = {"use": "scott", "discretisation": 4, "guidance": [1.0, 2.0], "sampling_steps": 2}
    result, made = run(method, tmp_path / "run")
    assert result["student"]["figures"]["evaluations"] == 2
    terms = {name for line in (made.folder / "log.jsonl").read_text().splitlines() for name in _terms(line)}
    assert terms == {"consistency", "fooled", "told_real", "told_fake"}


def _terms(line):
    import json

    return json.loads(line).get("terms", ())
