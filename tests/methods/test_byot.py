"""BYOT: the loss written out, who is taught and who is not, places, pieces, restart, a whole run."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from safetensors.torch import load_file
from small_pictures import Eye, distilled, settled, situation
from torch import nn

from limbeck.errors import RecipeError
from limbeck.methods.byot import BYOT, active_distance


def test_the_loss_is_the_papers():
    where, method = situation(teacher=False), BYOT(share=0.3, temperature=2.0, hint_weight=0.01)
    batch = settled(method, where)
    net = where.student.model
    low = net.low(batch["x"])
    middle = net.middle(low)
    last = net.high(middle)
    z = net.head(last.mean((2, 3)))
    assert (method.early, method.last) == (["low", "middle"], "high")
    expected = 0.7 * F.cross_entropy(z, batch["label"])
    for feature, head in zip((low, middle), method.heads):
        f, z_i = head(feature)
        assert f.shape == last.shape
        soft = -((z / 2).softmax(-1) * (z_i / 2).log_softmax(-1)).sum(-1) + (
            (z / 2).softmax(-1) * (z / 2).log_softmax(-1)
        ).sum(-1)
        hint = ((f - last) ** 2 * ((f > 0) | (last > 0))).sum()  # over the batch, as released
        expected = expected + 0.7 * F.cross_entropy(z_i, batch["label"]) + 0.3 * 4 * soft.mean() + 0.01 * hint / 8
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_exits_teach_the_shared_trunk_and_never_the_last_head():
    where, method = situation(teacher=False), BYOT(share=1.0, hint_weight=0.1)
    batch = settled(method, where)
    method.loss(batch).total().backward()  # with share = 1 no task: all gradients come from exits
    net = where.student.model
    for module in (net.head, net.high):  # behind the last exit
        for p in module.parameters():
            assert p.grad is None or p.grad.abs().max() == 0
    for module in (net.low, net.middle, *method.heads):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())


def test_without_shares_the_student_learns_as_if_alone_but_for_the_exits_own_task():
    where, method = situation(teacher=False), BYOT(share=0.0, hint_weight=0.0)
    batch = settled(method, where)
    net = where.student.model
    (found,) = torch.autograd.grad(method.loss(batch).total(), net.head.weight)
    (expected,) = torch.autograd.grad(F.cross_entropy(net(batch["x"]), batch["label"]), net.head.weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_exits_survive_a_kill(micro_batch, tmp_path):
    course = survives(lambda: (BYOT(), situation(teacher=False, micro_batch=micro_batch)), tmp_path)
    assert any(name.startswith("heads.1.") for name in course.methods[0].state_dict())


def test_the_cut_does_not_show(tmp_path):
    found = []
    for micro_batch in ("auto", 3):
        course = survives(
            lambda m=micro_batch: (BYOT(hint_weight=0.01), situation(teacher=False, epochs=1, micro_batch=m)),
            tmp_path / str(micro_batch),
        )
        found.append(course.situation.student.model.low.conv.weight)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_places_may_be_named():
    where, method = situation(teacher=False), BYOT(exits=["middle", "high"])
    settled(method, where)
    assert len(method.heads) == 1
    assert "exits at middle, taught by high" in method.notices[0]
    method = BYOT(most=2)
    settled(method, situation(teacher=False))
    assert method.early == ["middle"]


def test_the_hint_counts_where_one_is_active():
    early, last = torch.tensor([[1.0, -2.0, -1.0, 0.0]]), torch.tensor([[-1.0, -5.0, 2.0, 0.0]])
    early.requires_grad_()
    value = active_distance(early, last)
    assert value.tolist() == [(1 + 1) ** 2 + (-1 - 2) ** 2]
    assert torch.autograd.grad(value.sum(), early)[0].tolist() == [[4.0, 0.0, -6.0, 0.0]]
    assert active_distance(last, last).tolist() == [0.0]
    assert active_distance(early.half(), last.half()).dtype == torch.float32
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: active_distance(x, torch.ones_like(x)), (x,))


def test_it_runs_without_a_teacher_from_a_recipe_and_ships_no_exit(tmp_path):
    run = distilled("byot", tmp_path, teacher=False)
    assert run.result["status"] == "finished"
    assert set(load_file(run.folder / "student" / "model.safetensors")) == set(Eye().state_dict())


def test_mistakes_are_sentences():
    where = situation(teacher=False)
    where.student.model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(RecipeError, match=r"byot needs an earlier and a last place.*there is 0"):
        settled(BYOT(exits=["0"]), where)
    with pytest.raises(RecipeError, match="byot.most"):
        BYOT(most=1)
    with pytest.raises(RecipeError, match="no such place"):
        settled(BYOT(exits=["low", "hihg"]), situation(teacher=False))
