"""TwinFlow: the loss by hand, a network that knows one point loses nothing, gradients, twins, guidance of its own, refusals, a run."""

import pytest
import torch
from harness import survives
from points import in_double, network, settled, situation
from trajectories import instead, play, run

from limbeck.actors import Student
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods.twinflow import TwinFlow
from limbeck.models.toy import Mixture


def drawn(method, batch):
    """A batch as `learn` has it, without near pairs."""
    (update,) = play(method, batch)
    return dict(update.batch)


def hears(model, seed=3):
    """A network that has learnt to hear where it is to arrive."""
    with torch.no_grad():
        model.numbers.layers["until"].weight.normal_(generator=torch.Generator().manual_seed(seed))


def rows_of(where):
    return where.data.splits["train"].__getitems__(list(range(8)))


@pytest.mark.parametrize("teacher", [True, False])
def test_the_loss_is_the_papers_by_hand(teacher):
    where = situation(teacher=teacher, student=network())
    method = TwinFlow(guidance=1.5) if teacher else TwinFlow(enhance=0.5)
    settle(method, where)
    hears(where.student.model)
    hears(method.target, 4)
    batch = drawn(method, rows_of(where))
    batch["to"][:2] = batch["time"][:2] - torch.tensor([0.0, 0.005])  # near
    label, none = batch["label"], torch.full_like(batch["label"], 3)
    t, u, x0, z = batch["time"], batch["to"].clamp(min=0), batch["x0"], batch["z"]
    batch["to"] = u
    w = lambda v: v[:, None]  # noqa: E731

    def jump(net, x, t, until, label=label):
        return net.prediction(x, t.clamp(min=1e-3), {"condition": label, "until": until}).velocity

    def velocity(x, t):
        if teacher:
            c, n = (where.teacher.model.prediction(x, t, {"condition": k}).velocity for k in (label, none))
            return n + 1.5 * (c - n)
        c, n = (jump(method.target, x, t, t, k) for k in (label, none))
        return z - x0 + 0.5 * (c - n)

    def recursion(out, x, t, u):
        v = velocity(x, t)
        here = torch.maximum(t - 0.01, u)
        x, total = x - w(t - here) * v, 0
        step = (here - u) / 2
        for i in (0, 1):
            mean = jump(method.target, x, here - i * step, (here - (i + 1) * step).clamp(min=0))
            x, total = x - w(step) * mean, total + w(step) * mean
        far = 100 * (w(t - u) * out - total) - v
        q = torch.where(w(t - u) < 0.01, out - v, far).clamp(-1, 1)
        return ((out - (out - q).detach()) ** 2).mean()

    net, one, zero = where.student.model, torch.ones(8), torch.zeros(8)
    x_t = w(1 - t) * x0 + w(t) * z
    y = jump(net, z, one, zero)
    made = (z - y).detach()
    expected = recursion(jump(net, x_t, t, u), x_t, t, u) + recursion(y, z, one, zero)
    expected = expected + ((jump(net, x_t, t, t) - velocity(x_t, t)) ** 2).mean()
    s, eps = batch["fake_time"], batch["fake_noise"]
    expected = expected + ((jump(net, w(1 - s) * made + w(s) * eps, s, -s) - (eps - made)) ** 2).mean()
    s, eps = batch["matching_time"], batch["matching_noise"]
    x_s = w(1 - s) * made + w(s) * eps
    d = (jump(net, x_s, s, -s) - jump(net, x_s, s, s)).detach()
    expected = expected + ((y - (y - d).detach()) ** 2).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(method.loss(batch).total(), list(net.parameters())),
        torch.autograd.grad(expected, list(net.parameters())),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_who_knows_one_point_loses_nothing():
    """U = z - x* along straight lines: the recursion, its residual, the twins' difference and the flow's error are all zero."""
    with in_double():
        point = torch.tensor([[0.5, -0.25]])
        where = situation(teacher=False, student=network(classes=None))
        method = TwinFlow()
        settle(method, where)
        for denoiser in (method.generator, method.follower):
            instead(denoiser, Mixture(point, 0.0))
        method.follow = lambda decay: None
        batch = drawn(method, rows_of(where) | {"x": point.expand(8, 2)})
        batch["time"] = batch["time"].clamp(min=0.1)
        batch["to"] = batch["time"] * torch.linspace(0.0, 1.0, 8)
        t, z = batch["time"], batch["z"]
        x_t = method.noise.renoise(point.expand(8, 2), t, z)
        v = method.velocity(x_t, t, batch)
        torch.testing.assert_close(v, z - point, rtol=1e-12, atol=1e-13)
        u = method.towards(x_t, t, batch["to"], batch)
        assert method.residual(u, v, x_t, t, batch["to"], batch).abs().max() < 1e-10  # 100 times rounding
        loss = method.loss(batch)
        names = ("recursion", "flow", "one_step", "fake", "matching")
        found = {name: (part.sum / part.count).item() for name, part in loss.parts.items()}
        assert found == pytest.approx(dict.fromkeys(names, 0.0), abs=1e-20)


def test_samples_and_noise_are_the_two_ends_of_a_line():
    """x - t U and x + (1 - t) U: x_t lies between them, and from either end and U the other comes back."""
    with in_double():
        where, method = situation(teacher=False, student=network()), TwinFlow()
        batch = settled(method, where)
        t, x = torch.rand(8).clamp(0.1, 0.9), torch.randn(8, 2)
        u = method.towards(x, t, torch.zeros(8), batch)
        data, noise = x - t[:, None] * u, x + (1 - t[:, None]) * u
        torch.testing.assert_close(method.noise.renoise(data, t, noise), x, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(noise - data, u, rtol=1e-12, atol=1e-13)


def test_the_gradient_of_matching_on_the_sample_is_twice_the_twins_difference():
    with in_double():
        the_gradient_of_matching()


def the_gradient_of_matching():
    where, method = situation(teacher=False, student=network()), TwinFlow()
    settle(method, where)
    hears(where.student.model)
    batch = drawn(method, rows_of(where))
    kept, plain = {}, method.towards

    def towards(x, t, to, batch, of=None):
        if of is None and "y" not in kept and (to == 0).all() and (t == 1).all():
            return kept.setdefault("y", plain(x, t, to, batch).detach().requires_grad_())
        return plain(x, t, to, batch, of)

    method.towards = towards
    part = method.loss(batch).parts["matching"]
    (found,) = torch.autograd.grad(part.sum / part.count, kept["y"])
    s = batch["matching_time"]
    x_s = method.noise.renoise(batch["z"] - kept["y"].detach(), s, batch["matching_noise"])
    d = plain(x_s, s, -s, batch) - plain(x_s, s, s, batch)
    assert d.abs().max() > 0
    torch.testing.assert_close(found, (2 * d / d.numel()).detach(), rtol=1e-12, atol=1e-15)


def test_who_does_not_hear_the_sign_has_no_twin():
    where, method = situation(teacher=False), TwinFlow()
    settle(method, where)  # the embedding is zero yet
    batch = drawn(method, rows_of(where))
    assert method.loss(batch).parts["matching"].sum.item() == 0
    hears(where.student.model)
    assert method.loss(batch).parts["matching"].sum.item() > 0
    alone = TwinFlow(matching_weight=0.0)
    settle(alone, where)
    assert set(alone.loss(drawn(alone, rows_of(where))).parts) == {"recursion", "flow", "one_step"}


def test_the_copy_follows_from_the_first_step_on(tmp_path):
    course = survives(lambda: (TwinFlow(), situation(teacher=False, epochs=1, lr=0.02)), tmp_path)
    target = dict(course.methods[0].target.named_parameters())
    assert any(name.startswith("numbers.") for name in target)
    where, method = situation(teacher=False), TwinFlow()
    settle(method, where)
    seen = []
    method.follow = seen.append
    for step in (0, 1, 3, 98, 99, 10_000):
        with torch.no_grad():
            list(method.learn(rows_of(where), type(method.progress)(step=step)))
    assert seen == pytest.approx([0, 0.5, 0.75, 98 / 99, 0.99, 0.99])


def test_without_data_its_own_samples_take_their_place():
    where, method = situation(), TwinFlow()
    settle(method, where)
    for actor in (where.student, where.teacher):
        actor.view = type(actor.view)(condition="label", id="id")
    batch = drawn(method, {"label": torch.tensor([0, 1, 2]), "id": torch.arange(3)})
    assert batch["x0"].shape == (3, 2)
    assert torch.isfinite(method.loss(batch).total())


def test_it_speaks_of_flows_alone():
    with pytest.raises(RecipeError, match="flow noise"):
        settle(TwinFlow(), situation(teacher=False, student=network("vp", "v")))


@pytest.mark.parametrize("teacher", [True, False])
def test_a_run(teacher, tmp_path):
    changes = {} if teacher else {"teacher": None}
    result, made = run({"use": "twinflow", "guidance": 1.0}, tmp_path / "run", **changes)
    assert result["student"]["figures"]["evaluations"] == 1
    assert Student(made.folder).model.numbers.defaults == {"until": 0.0}
