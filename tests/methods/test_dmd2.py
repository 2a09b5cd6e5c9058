"""DMD2: the published loop with its order, the gradient of the KL divergence for Gaussians, backward simulation, the GAN, LoRA critics."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from harness import fresh, steps, survives
from points import descend, in_double, mixture, network, same, settled, situation

from limbeck.diffusion.noise import VP, Flow
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.dmd2 import DMD2
from limbeck.models.toy import Mixture


def guided(R, x_t, t, label, w):
    c, u = (R.prediction(x_t, t, {"condition": k}).x0 for k in (label, torch.full_like(label, 3)))
    return u + w * (c - u)


def noised(x, t, eps):
    return (1 - t[:, None]) * x + t[:, None] * eps


@pytest.mark.parametrize(("ratio", "few"), [(1, 1), (2, 1), (3, 2)])
def test_a_training_is_the_published_loop(ratio, few):
    def build():
        return DMD2(critic_steps=ratio, guidance=2.0, sampling_steps=few), situation(lr=0.02)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    G, R, fake = where.student.model, where.teacher.model, method.critic
    for step, batch in enumerate(steps(where)):
        label, n = batch["label"], len(batch["label"])
        torch.rand(n)  # guidance scales, all equal here
        z = torch.randn(n, 2)
        object.__setattr__(method, "progress", type(method.progress)(step=step, seed=5))
        t0 = torch.ones(n)
        if few == 2 and method.shared(2) == 1:  # backward simulation: one step of its own, noised anew to t = 1/2
            with torch.no_grad():
                z, t0 = noised(G.prediction(z, t0, {"condition": label}).x0, t0 / 2, torch.randn(n, 2)), t0 / 2
        made = G.prediction(z, t0, {"condition": label}).x0
        if step % ratio == 0:
            t, eps = 0.02 + 0.96 * torch.rand(n), torch.randn(n, 2)
            x_t = noised(made, t, eps).detach()
            real = guided(R, x_t, t, label, 2.0)
            g = (fake.prediction(x_t, t, {"condition": label}).x0 - real) / (made - real).abs().mean(1, keepdim=True)
            descend(G.parameters(), 0.5 * ((made - (made - g).detach()) ** 2).mean(), 0.02)
        made = made.detach()
        t, eps = torch.rand(n).clamp(1e-3, 1), torch.randn(n, 2)
        v = fake(noised(made, t, eps), label, time=t)["prediction"]
        descend(fake.parameters(), ((v - (eps - made)) ** 2).mean(), 0.02)
    same(course.situation.student.model, G)
    same(course.methods[0].critic, fake)


@pytest.mark.parametrize("options", [{}, {"gan_weight": 0.1, "sampling_steps": 2}], ids=["plain", "gan"])
def test_student_critic_and_judge_survive_a_kill(options, tmp_path):
    adam = {"optimizer": "adamw", "lr": 1e-2, "trainees": {"critic": {"lr": 1e-3}}}
    course = survives(lambda: (DMD2(critic_steps=2, **options), situation(**adam)), tmp_path)
    names = set(course.methods[0].state_dict())
    assert any(n.startswith("critic.") for n in names)
    assert any(n.startswith("judge.") for n in names) is bool(options)


def test_cut_into_pieces_it_is_the_same_training():
    found = []
    for micro in (8, 3):
        plan, where = fresh(lambda m=micro: (DMD2(gan_weight=0.1, critic_steps=2), situation(micro_batch=m)))
        course = Course(plan, where)
        course.run()
        found.append(course)
    same(found[0].situation.student.model, found[1].situation.student.model)
    same(found[0].methods[0].critic, found[1].methods[0].critic)
    same(found[0].methods[0].judge, found[1].methods[0].judge)


def updates(method, where, count):
    """Who is updated in which step."""
    seen = []
    for step in range(count):
        object.__setattr__(method, "progress", type(method.progress)(step=step))
        with torch.no_grad():
            play = method.learn(where.data.splits["train"].__getitems__(list(range(4))), method.progress)
            seen.append([u.trainee for u in play])
    return seen


def test_the_student_learns_every_fifth_time_and_before_the_critic():
    where, method = situation(), DMD2()
    settle(method, where)
    seen = updates(method, where, 11)
    assert [len(s) for s in seen] == [2, 1, 1, 1, 1, 2, 1, 1, 1, 1, 2]
    assert seen[0] == ["student", "critic"]
    counts = [sum(s.count(who) for s in seen) for who in ("student", "critic")]
    assert counts == [math.ceil(11 / 5), 11]


def test_where_the_critic_says_what_the_teacher_says_the_student_stays():
    where = situation(mixture(), student=network())
    method = DMD2(guidance=1.0)
    batch = settled(method, where)
    method.fake.actor.model = method.fake.model = where.teacher.model
    method._fake_is = "teacher"
    batch |= method.inputs(batch) | {"time": method.drawn(batch), "noise": method.fresh(batch)}
    method.student_loss(batch).total().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in where.student.model.parameters())


@pytest.mark.parametrize("guidance", [1.0, 1.75])
def test_the_gradient_reaches_the_samples_alone_and_is_the_one_injected(guidance):
    """(F - R^w) / nu over the number of elements, nu = mean |x0 - R^w|: the teacher is guided in both places, the critic in none."""
    with in_double():
        where, method = situation(network(), student=network()), DMD2(guidance=guidance)
        batch = settled(method, where)
        batch |= method.inputs(batch) | {"time": method.drawn(batch), "noise": method.fresh(batch)}
        with torch.no_grad():
            for p in method.critic.parameters():
                p.add_(0.1 * torch.randn_like(p))
        x0, t, label = torch.randn(8, 2, requires_grad=True), batch["time"], batch["label"]
        method.generated = lambda _: x0
        method.student_loss(batch).total().backward()
        x_t = noised(x0.detach(), t.double(), batch["noise"])
        real = guided(where.teacher.model, x_t, t, label, guidance)
        fake = method.critic.prediction(x_t, t, {"condition": label}).x0
        g = (fake - real) / (x0 - real).abs().mean(1, keepdim=True)
        torch.testing.assert_close(x0.grad, (g / 16).detach(), rtol=1e-6, atol=1e-9)  # times are of single precision
        assert all(p.grad is None for p in (*method.critic.parameters(), *where.teacher.model.parameters()))


@pytest.mark.parametrize("noise", [VP(), Flow()], ids=["vp", "flow"])
def test_for_gaussians_it_is_the_gradient_of_the_divergence(noise):
    """Generator N(b, a^2), teacher N(m, s^2), exact scores: E[alpha^2 / sigma^2 (F - R)] = d KL(p_t || q_t) / d b, by autograd."""
    a, b, m, s = 0.75, 0.5, -0.25, 0.5  # numbers that fp32 has exactly
    F_, R = (Mixture([[mean]], std, noise=noise).double() for mean, std in ((b, a), (m, s)))
    t = noise.at(torch.tensor([0.5], dtype=torch.float64))
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    x, weights = (torch.tensor(v) for v in __import__("numpy").polynomial.hermite_e.hermegauss(40))
    spread = (alpha**2 * a**2 + sigma**2).sqrt()
    x_t = (alpha * b + spread * x)[:, None]
    times = t.expand(40)
    gap = (F_.prediction(x_t, times, {}).x0 - R.prediction(x_t, times, {}).x0).squeeze(1)
    found = (alpha / sigma) ** 2 * (weights * gap).sum() / weights.sum()

    mean = torch.tensor(b, dtype=torch.float64, requires_grad=True)
    v = alpha**2 * s**2 + sigma**2
    kl = (v / spread**2).log() / 2 + (spread**2 + (alpha * mean - alpha * m) ** 2) / (2 * v) - 0.5
    (expected,) = torch.autograd.grad(kl.sum(), mean)
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


def test_several_steps_begin_at_the_students_own_states():
    """A student that knows one point only: what it has come to at its second time is alpha x* + sigma fresh noise."""
    where = situation(Mixture([[2.0, -1.0]], 1e-3), student=network(classes=None), data=None)
    method = DMD2(sampling_steps=4)
    batch = settled(method, where)
    method.generator.actor.model = method.generator.model = where.teacher.model
    batch = {k: v.repeat(500, *[1] * (v.dim() - 1)) for k, v in batch.items()}
    found = method.inputs(batch, place=2)
    assert (found["start"] == 0.5).all()
    assert found["input"].mean(0).tolist() == pytest.approx([1.0, -0.5], abs=0.03)
    assert found["input"].std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.05)
    assert (method.inputs(batch, place=0)["start"] == 1).all()
    ddim = DMD2(sampling_steps=4, solver="ddim")
    settled(ddim, where)
    ddim.generator = method.generator
    state = torch.get_rng_state()
    x = ddim.inputs(batch, place=2)["input"]
    torch.set_rng_state(state)
    z = torch.randn(len(x), 2)
    torch.testing.assert_close(x, 0.5 * torch.tensor([2.0, -1.0]) + 0.5 * z, rtol=1e-2, atol=1e-2)  # a straight line


def test_the_place_is_one_for_all_and_every_place_has_its_turn():
    method = DMD2(sampling_steps=4)
    seen = []
    for step in range(400):
        object.__setattr__(method, "progress", type(method.progress)(step=step, seed=3))
        seen.append(method.shared(4))
        assert method.shared(4) == seen[-1]
    counts = torch.tensor(seen).bincount()
    assert len(counts) == 4
    assert counts.min() > 60


def test_the_gan_is_the_logistic_game_on_noised_samples():
    where, method = situation(), DMD2(gan_weight=0.3, critic_gan_weight=0.2)
    batch = settled(method, where)
    batch |= method.inputs(batch) | {"time": method.drawn(batch), "noise": method.fresh(batch)}
    batch |= method.for_the_judge(batch, "fake", "real")
    batch["generated"] = method.generated(batch).detach()
    loss = method.critic_loss(batch)
    label = {"condition": batch["label"]}
    scores = {
        kind: method.judge(noised(x, batch[f"{kind}_time"], batch[f"{kind}_noise"]), batch[f"{kind}_time"], label)
        for kind, x in (("fake", batch["generated"]), ("real", batch["x"]))
    }
    plain = loss.parts["denoising"].sum / loss.parts["denoising"].count
    expected = plain + 0.2 * (F.softplus(scores["fake"]).mean() + F.softplus(-scores["real"]).mean())
    torch.testing.assert_close(loss.total(), expected)
    student = method.student_loss(batch)
    torch.testing.assert_close(
        student.parts["fooled"].sum / 8 * student.parts["fooled"].weight, 0.3 * F.softplus(-scores["fake"]).mean()
    )
    for p in method.critic.parameters():
        p.requires_grad_(False)
    student.total().backward()
    before = where.student.model.output.weight.grad.clone()
    where.student.model.zero_grad()
    only = DMD2()
    only.__dict__.update({k: v for k, v in method.__dict__.items() if k != "adversarial"})
    only.adversarial = False
    only.student_loss(batch).total().backward()
    assert not torch.equal(before, where.student.model.output.weight.grad)  # the GAN's gradient went through the trunk


def test_a_low_rank_critic_begins_as_the_teacher_and_learns_its_updates_alone(tmp_path):
    pytest.importorskip("peft")

    def build():
        torch.manual_seed(3)
        return DMD2(critic_lora=2, critic_steps=1), situation(network(), optimizer="adamw", lr=1e-2)

    method, where = fresh(build)
    batch = settled(method, where)
    batch |= method.inputs(batch) | {"time": method.drawn(batch), "noise": method.fresh(batch)}
    assert method.student_loss(batch).total().item() == 0  # F == R
    weights = copy.deepcopy(where.teacher.model.state_dict())
    course = survives(build, tmp_path)
    for name, value in course.situation.teacher.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert sum(p.numel() for p in course.methods[0].critic) < sum(p.numel() for p in where.teacher.model.parameters())
    assert all(name.startswith("critic.") for name in course.methods[0].state_dict())


def test_a_formula_has_no_weights_to_stand_beside():
    with pytest.raises(RecipeError, match="is a formula"):
        settle(DMD2(critic_lora=2), situation())


def test_without_a_gan_no_data_are_needed_but_conditions():
    where, method = situation(), DMD2()
    settle(method, where)
    for actor in (where.student, where.teacher):
        actor.view = type(actor.view)(condition="label", id="id")
    with torch.no_grad():
        play = method.learn({"label": torch.tensor([0, 1, 2]), "id": torch.arange(3)}, method.progress)
        batches = [u.batch for u in play]
    assert "x0" not in batches[0]
    assert batches[1]["generated"].shape == (3, 2)


def test_a_teacher_that_has_not_seen_the_students_noise_is_refused():
    where = situation(mixture("vp"), student=network("ve", "edm"))
    where.teacher.model.noise = VP(steps=10)
    with pytest.raises(RecipeError, match="never seen"):
        settle(DMD2(), where)
