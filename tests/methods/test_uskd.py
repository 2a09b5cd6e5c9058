"""USKD: the loss written out, gradients, pieces, restart, a whole run without a teacher."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from safetensors.torch import load_file
from small_pictures import Eye, distilled, settled, situation
from torch import nn

from limbeck.errors import RecipeError
from limbeck.methods.uskd import USKD
from limbeck.tasks import Task


@pytest.mark.parametrize("mode", ["prob", "code"])
def test_the_loss_is_the_papers(mode):
    where = situation(teacher=False)
    method = USKD(rank_mode=mode, target_weight=0.2, others_weight=0.3, weak_weight=0.4)
    batch = settled(method, where)
    net, y, rows = where.student.model, batch["label"], torch.arange(8)
    middle = net.middle(net.low(batch["x"]))
    z = net(batch["x"])
    weak = method.weak[1](middle.mean((2, 3)))
    p, w = z.softmax(-1), weak.softmax(-1)
    square = p[rows, y].detach() ** 2
    target = -((square + 1 - square.mean()) * p[rows, y].log()).mean()
    s = p.log() if mode == "code" else p
    r = w / (1 - w[rows, y] + 1e-6)[:, None] + s / (1 - s[rows, y] + 1e-6)[:, None]
    others = 0.0
    for b in range(8):
        order = r[b].argsort(descending=True).tolist()
        mass = {c: 1 / (i + 1) for i, c in enumerate(order) if c != int(y[b])}
        left = [c for c in range(3) if c != int(y[b])]
        log_q = dict(zip(left, z[b, left].log_softmax(-1)))
        others = others - sum(mass[c] / sum(mass.values()) * log_q[c] for c in left) / 8
    smooth = F.cross_entropy(weak, y, label_smoothing=0.1)
    expected = F.cross_entropy(z, y) + 0.2 * target + 0.3 * others + 0.4 * smooth
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_the_weak_head_teaches_the_trunk_below_it_and_nothing_above():
    where = situation(teacher=False)
    method = USKD(target_weight=0.0, others_weight=0.0)
    batch = settled(method, where)
    method.loss(batch).total().backward()
    found = {n: p.grad.clone() for n, p in where.student.model.named_parameters()}
    where.student.model.zero_grad()
    F.cross_entropy(where.student.model(batch["x"]), batch["label"]).backward()
    for name, p in where.student.model.named_parameters():
        same = torch.allclose(found[name], p.grad, atol=1e-7)
        assert same == name.startswith(("high", "head")), name


def test_of_two_classes_the_other_is_certain():
    where, method = situation(teacher=False), USKD()
    where.student.model = Eye(classes=2)
    where.task = Task("classification")
    where.data.splits["train"].tensors["label"] %= 2
    batch = settled(method, where)
    part = method.loss(batch).parts["others"]
    assert part.sum.item() == pytest.approx(0.0, abs=1e-6)
    (gradient,) = torch.autograd.grad(part.sum, where.student.model.head.weight)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_the_weak_head_survives_a_kill(micro_batch, tmp_path):
    course = survives(lambda: (USKD(), situation(teacher=False, micro_batch=micro_batch)), tmp_path)
    assert "weak.1.weight" in course.methods[0].state_dict()


def test_the_cut_does_not_show(tmp_path):
    def build(micro_batch):
        return USKD(target_weight=1.0), situation(teacher=False, epochs=1, micro_batch=micro_batch)

    whole, cut = (survives(lambda m=m: build(m), tmp_path / str(m)) for m in ("auto", 3))
    for ours, theirs in zip(whole.situation.student.model.parameters(), cut.situation.student.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_it_runs_without_a_teacher_from_a_recipe_and_ships_no_weak_head(tmp_path):
    run = distilled({"use": "uskd", "place": "low"}, tmp_path, teacher=False)
    assert run.result["status"] == "finished"
    assert set(load_file(run.folder / "student" / "model.safetensors")) == set(Eye().state_dict())


def test_the_place_is_the_last_but_one_and_said_or_named():
    method = USKD()
    settled(method, situation(teacher=False))
    assert (method.early, method.weak[1].in_features) == ("middle", 4)
    assert "weak head reads middle" in method.notices[0]
    named = USKD(place="high")
    settled(named, situation(teacher=False))
    assert (named.weak[1].in_features, named.notices) == (8, [])


def test_mistakes_are_sentences():
    where = situation(teacher=False)
    where.task = Task("regression", target="label")
    with pytest.raises(RecipeError, match=r"uskd ranks the classes.*here are regression and logits \[3\]"):
        settled(USKD(), where)
    where = situation(teacher=False)
    where.student.model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(RecipeError, match="no layers can be proposed"):
        settled(USKD(), where)
    with pytest.raises(RecipeError, match="uskd.rank_mode"):
        USKD(rank_mode="log")
