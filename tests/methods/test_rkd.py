"""RKD, SP and PKT as methods: which layers, which weights, the loss written out, pieces, restart, a whole run."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from small_pictures import distilled, settled, situation

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.relations import pkt, rkd_angle, rkd_distance, similarity_preserving
from limbeck.methods.kd import KD
from limbeck.methods.pkt import PKT
from limbeck.methods.rkd import RKD
from limbeck.methods.sp import SP


def embedding(model, x):
    return model.high(model.middle(model.low(x))).mean((2, 3))


def last_map(model, x):
    return model.high(model.middle(model.low(x)))


PUBLISHED = {
    RKD: (embedding, lambda s, t: 25 * rkd_distance(s, t).mean() + 50 * rkd_angle(s, t).mean()),
    SP: (last_map, lambda s, t: 3000 * similarity_preserving(s, t).mean()),
    PKT: (embedding, lambda s, t: 30000 * pkt(s, t).mean()),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_loss_is_the_papers_at_the_published_weights(kind):
    where, method = situation(), kind()
    batch = settled(method, where)
    read, transfer = PUBLISHED[kind]
    ours, theirs = read(where.student.model, batch["x"]), read(where.teacher.model, batch["x"])
    assert ours.shape[1] != theirs.shape[1]  # no bridge was built for the widths
    assert not list(method.parameters())
    expected = transfer(ours, theirs) + F.cross_entropy(where.student.model(batch["x"]), batch["label"])
    torch.testing.assert_close(method.loss(batch).total(), expected)
    assert "layers compared" in " ".join(method.notices)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_cut_does_not_show_and_a_killed_run_goes_on(kind, tmp_path):
    def build(micro_batch="auto"):
        return kind(weight=1.0), situation(micro_batch=micro_batch, epochs=1)

    whole, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    for ours, theirs in zip(whole.situation.student.model.parameters(), cut.situation.student.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt"])
def test_it_runs_from_a_recipe(name, tmp_path):
    run = distilled({"use": name, "weight": 0.5}, tmp_path)
    assert run.result["status"] == "finished"
    assert run.recipe.to_yaml().count(name) >= 1


def test_several_layers_may_be_named_and_are_terms_of_their_own():
    where, method = situation(), RKD(layers=[["middle", "low"], "high"], angle_weight=0)
    batch = settled(method, where)
    parts = method.loss(batch).parts
    assert set(parts) == {
        "rkd-distance.middle",
        "rkd-distance.high",
        "rkd-angle.middle",
        "rkd-angle.high",
        "task",
    }
    model, teacher, x = where.student.model, where.teacher.model, batch["x"]
    expected = rkd_distance(model.middle(model.low(x)), teacher.low(x)).mean()
    found = parts["rkd-distance.middle"]
    torch.testing.assert_close(found.value(found.tensors), expected)


def test_it_adds_up_with_kd_and_the_task_counts_once():
    where, method = situation(), KD(temperature=2) + RKD(weight=0.1) + SP()
    batch = settled(method, where)
    assert set(method.loss(batch).parts) == {"kl", "rkd-distance", "rkd-angle", "sp", "task"}
    alone = {}
    for member in (KD(temperature=2, task_weight=0), RKD(weight=0.1, task_weight=0), SP(task_weight=0)):
        again = situation()
        again.student, again.teacher = where.student, where.teacher
        settled(member, again)
        alone[type(member)] = member.loss(batch).total()
    task = F.cross_entropy(where.student.model(batch["x"]), batch["label"])
    torch.testing.assert_close(method.loss(batch).total(), sum(alone.values()) + task)


def test_no_gradient_reaches_the_teacher():
    where, method = situation(), RKD()
    batch = settled(method, where)
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in where.teacher.model.parameters())
    assert all(p.grad is not None for n, p in where.student.model.named_parameters())


def test_options_are_checked():
    with pytest.raises(RecipeError, match="rkd.block"):
        RKD(block=2)
    with pytest.raises(RecipeError, match="Did you mean 'angle_weight'"):
        RKD(angel_weight=2)
    assert find("pkt") is pkt
