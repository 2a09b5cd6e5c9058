"""Deep mutual learning: the loops of the paper, who gets which gradient, peers of other kinds, restart, a whole run."""

import copy

import pytest
import torch
import torch.nn.functional as F
from harness import PLAIN, fresh, steps, survives
from small_pictures import distilled, settled, situation
from torch import nn

from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.dml import DML, draw_anew


def divergence(p, q):
    """KL of the softmaxes, mean over samples, by its definition."""
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()


def slow(nets, batches, order, symmetric, rate=0.1):
    """The published loop with plain gradient descent."""
    for batch in batches:
        before = [net(batch["x"]).detach() for net in nets]
        for k, net in enumerate(nets):
            logits = net(batch["x"])
            heard = before if order == "simultaneous" else [n(batch["x"]).detach() for n in nets]
            mutual = 0.0
            for j, other in enumerate(heard):
                if j != k:
                    one, two = divergence(other, logits), divergence(logits, other)
                    mutual = mutual + ((one + two) / 2 if symmetric else one) / (len(nets) - 1)
            loss = F.cross_entropy(logits, batch["label"]) + 0.7 * mutual
            for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
                p.data -= rate * grad


@pytest.mark.parametrize("order", ["sequential", "simultaneous"])
@pytest.mark.parametrize(("peers", "symmetric", "micro_batch"), [(1, False, "auto"), (2, True, 3)])
def test_a_training_is_the_published_loop(order, peers, symmetric, micro_batch):
    def build():
        method = DML(peers=peers, order=order, symmetric=symmetric, weight=0.7)
        return method, situation(teacher=False, micro_batch=micro_batch)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()
    method, where = fresh(build)
    settle(method, where)
    nets = [where.student.model, *method.networks]
    slow(nets, steps(where), order, symmetric)
    found = [course.situation.student.model, *course.methods[0].networks]
    for ours, theirs in zip(found, nets, strict=True):
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_peers_and_their_optimisers_survive_a_kill(tmp_path):
    adam = PLAIN | {"optimizer": "adamw", "lr": 1e-2, "trainees": {"peer1": {"lr": 1e-3}}}
    course = survives(lambda: (DML(), situation(teacher=False, **adam)), tmp_path)
    assert any(name.startswith("networks.0.") for name in course.methods[0].state_dict())


def test_no_gradient_enters_the_opinion_of_the_others():
    where, method = situation(teacher=False), DML(peers=2)
    batch = settled(method, where)
    heard = torch.stack([actor(batch)["logits"] for name, actor in method.everyone.items() if name != "peer1"], 1)
    method.among("peer1", batch | {"dml_others": heard.detach()}).total().backward()
    assert all(p.grad is not None for p in method.networks[0].parameters())
    for net in (where.student.model, method.networks[1]):
        assert all(p.grad is None for p in net.parameters())


def test_the_symmetric_term_is_half_of_the_gradient_of_the_joint_loss_without_a_stop():
    """Sum over k of KL(p_j || p_k), differentiated into everything, gives net 1 what `symmetric` gives it, twice."""
    where, method = situation(teacher=False), DML(symmetric=True, task_weight=0.0)
    batch = settled(method, where)
    one, two = where.student.model(batch["x"]), method.networks[0](batch["x"])
    joint = divergence(two, one) + divergence(one, two)
    weight = where.student.model.head.weight
    (expected,) = torch.autograd.grad(joint, weight)
    loss = method.among("student", batch | {"dml_others": two.detach().unsqueeze(1)}).total()
    (found,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(2 * found, expected)


def test_peers_that_agree_learn_the_task_alone():
    where, method = situation(teacher=False), DML()
    batch = settled(method, where)
    method.networks[0].load_state_dict(where.student.model.state_dict())
    heard = method.everyone["peer1"](batch)["logits"].detach().unsqueeze(1)
    loss = method.among("student", batch | {"dml_others": heard})
    assert loss.parts["mutual"].sum.item() == 0
    torch.testing.assert_close(loss.total(), F.cross_entropy(where.student.model(batch["x"]), batch["label"]))


def test_peers_are_drawn_anew_and_each_differently():
    where, method = situation(teacher=False), DML(peers=2)
    before = copy.deepcopy(where.student.model.state_dict())
    settled(method, where)
    nets = [where.student.model, *method.networks]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for (name, p), q in zip(nets[a].named_parameters(), nets[b].parameters()):
            if p.dim() > 1:
                assert not torch.equal(p, q), name
    assert all(torch.equal(p, before[n]) for n, p in where.student.model.state_dict().items())


def test_what_cannot_be_drawn_anew_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
            self.attention = nn.MultiheadAttention(4, 2)

    model = Odd()
    start = copy.deepcopy(model.state_dict())
    assert draw_anew(model) == ["scale"]
    assert not torch.equal(model.layer.weight, start["layer.weight"])
    assert not torch.equal(model.attention.in_proj_weight, start["attention.in_proj_weight"])


def test_peers_may_be_other_networks_named_as_a_student_is():
    wide = {"model": "small_pictures:Eye", "args": {"width": 5}, "view": "x"}
    where, method = situation(teacher=False), DML(peers=["small_pictures:Eye", wide])
    settled(method, where)
    assert [net.low.conv.out_channels for net in method.networks] == [4, 5]
    assert set(method.trainees()) == {"student", "peer1", "peer2"}


def test_it_runs_without_a_teacher_from_a_recipe(tmp_path):
    run = distilled({"use": "dml", "peers": 2}, tmp_path, teacher=False)
    assert run.result["status"] == "finished"
    assert "teacher" not in run.result or run.result["teacher"] is None


def test_mistakes_are_sentences():
    with pytest.raises(RecipeError, match="dml.peers"):
        DML(peers=0)
    with pytest.raises(RecipeError, match="cannot learn from itself alone"):
        settled(DML(peers=[]), situation(teacher=False))
    other = {"model": "small_pictures:Eye", "args": {"classes": 4}}
    with pytest.raises(RecipeError, match=r"peer1 gives logits of shape \[4\].*the student \[3\]"):
        settled(DML(peers=[other]), situation(teacher=False))


def test_dense_logits_are_compared_pixel_by_pixel():
    method = DML()
    where = situation(teacher=False)
    settled(method, where)

    class Said:
        def __call__(self, batch):
            return {"logits": batch["z"]}

    class NoTask:
        def loss(self, signals, batch):
            from limbeck.objectives import Loss

            return Loss.mean("task", signals["logits"].sum((1, 2, 3)) * 0)

    method.everyone["student"] = Said()
    object.__setattr__(method, "task", NoTask())
    z, others = torch.randn(2, 3, 4, 5), torch.randn(2, 1, 3, 4, 5)
    loss = method.among("student", {"z": z, "dml_others": others})
    p, log_q = others[:, 0].softmax(1), z.log_softmax(1)
    expected = (p * (others[:, 0].log_softmax(1) - log_q)).sum(1).mean()
    torch.testing.assert_close(loss.total(), expected)
