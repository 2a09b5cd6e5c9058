"""DSKD: each side's states through the other's head; who learns from what; attention between two tokenizations."""

import math

import pytest
import torch
from torch.nn import functional as F
from two_vocabularies import ANSWERS, OURS, batch, bound, pair

from limbeck import RecipeError
from limbeck.methods.dskd import DSKD, attend, spread


def said(actor, own):
    z = actor(own)["logits"]
    return z.hidden, z.weight, z.bias


def doubled(method):
    for module in method.modules():
        if isinstance(module, torch.nn.Linear):
            module.double()
    return method


def same(**options):
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS)
    return own, student, teacher, doubled(bound(DSKD(**options), student, teacher, own))


def across(**options):
    own = batch(ANSWERS)
    student, teacher = pair()
    return own, student, teacher, doubled(bound(DSKD(**options), student, teacher, own))


def kl(p_logits, q_logits, temperature=1.0):
    p, q = ((x / temperature).log_softmax(-1) for x in (p_logits, q_logits))
    return (p.exp() * (p - q)).sum(-1)


def test_with_one_tokenizer_value_and_gradients_are_those_of_the_formula():
    own, student, teacher, method = same(weight=0.6, task_weight=0.4, temperature=1.5)
    total = method.loss(method.draw(own)).total()
    (h_s, W_s, b_s), (h_t, W_t, b_t) = said(student, own), said(teacher, own)
    at, y = own["answer"], own["target"][own["answer"]]
    z_s, z_t = (h_s @ W_s.T + b_s)[at], (h_t @ W_t.T + b_t)[at].detach()
    z_ts = (method.to_student(h_t.detach()) @ W_s.detach().T + b_s.detach())[at]
    z_st = (method.to_teacher(h_s) @ W_t.detach().T + b_t.detach())[at]
    parts = F.cross_entropy(z_ts, y) + kl(z_ts.detach(), z_s, 1.5).mean() + kl(z_t, z_st, 1.5).mean()
    expected = 0.4 * F.cross_entropy(z_s, y) + 0.6 * parts
    torch.testing.assert_close(total, expected)
    parameters = [*student.model.parameters(), *method.parameters()]
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", [same, across])
def test_the_teachers_map_learns_by_its_cross_entropy_alone_and_nobody_elses_head_does(case):
    own, student, teacher, method = case()
    parts = method.loss(method.draw(own)).parts
    mapping = list(method.to_student.parameters())
    (right,) = torch.autograd.grad(parts["dskd.projector"].sum, mapping[:1], retain_graph=True)
    assert right.abs().max() > 0
    for name in ("dskd.student", "dskd.teacher"):
        grads = torch.autograd.grad(parts[name].sum, mapping, allow_unused=True, retain_graph=True)
        assert all(g is None or g.abs().max() == 0 for g in grads)
    parts["dskd.projector"].sum.backward(retain_graph=True)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in student.model.parameters())
    sum(p.sum for p in parts.values()).backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert method.to_teacher.weight.grad.abs().max() > 0


def test_across_tokenizers_value_and_gradients_are_those_of_the_formula():
    own, student, teacher, method = across(task_weight=0.0, weight=1.0)
    total = method.loss(method.draw(own)).total()
    (h_s, W_s, b_s), (h_t, W_t, b_t) = said(student, own), said(teacher, own)
    e_s, e_t = student.model.read.weight.detach(), teacher.model.read.weight.detach()
    sums, ours, theirs = [0.0, 0.0, 0.0], 0, 0
    for b in range(len(ANSWERS)):
        here, there = own["answer"][b].nonzero()[:, 0], own["teacher_answer"][b].nonzero()[:, 0]
        ids, other = own["input_ids"][b], own["teacher_input_ids"][b]
        key = torch.cat([e_t[other[there]], e_t[other[there + 1]]], -1)
        ask = method.query(torch.cat([e_s[ids[here]], e_s[ids[here + 1]]], -1))
        A = ask @ (key / key.std(correction=0)).T / math.sqrt(2 * e_t.shape[1])
        h, nxt = h_t[b, there].detach(), e_t[other[there + 1]]
        v = method.to_student(h / h.std(correction=0) + nxt / nxt.std(correction=0))
        z_ts = A.softmax(-1) @ v @ W_s.detach().T + b_s.detach()
        z_st = A.T.softmax(-1) @ method.to_teacher(h_s[b, here]) @ W_t.detach().T + b_t.detach()
        z_s, z_t = h_s[b, here] @ W_s.T + b_s, (h_t[b, there] @ W_t.T + b_t).detach()
        y = ids[here + 1]
        sums[0] = sums[0] + F.cross_entropy(z_ts, y, reduction="sum")
        sums[1] = sums[1] + (kl(z_ts.detach(), z_s) * (z_ts.argmax(-1) == y)).sum()
        sums[2] = sums[2] + kl(z_t, z_st).sum()
        ours, theirs = ours + len(here), theirs + len(there)
    expected = sums[0] / ours + sums[1] / ours + sums[2] / theirs
    torch.testing.assert_close(total, expected)
    parameters = [*student.model.parameters(), *method.parameters()]
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", [same, across])
def test_a_wider_padding_and_another_cut_change_nothing(case):
    own, _, _, method = case(task_weight=0.0)
    loss = method.loss(own)
    wider = {k: F.pad(v, (0, 4)) if v.dim() > 1 else v for k, v in own.items()}
    torch.testing.assert_close(method.loss(wider).total(), loss.total())
    for name, part in loss.parts.items():
        pieces = [method.loss({k: v[i : i + 1] for k, v in own.items()}).parts[name] for i in range(len(ANSWERS))]
        torch.testing.assert_close(sum(p.sum for p in pieces), part.sum)
        assert part.mask is own["teacher_answer" if name == "dskd.teacher" and case is across else "answer"]


def test_nothing_that_counts_is_a_loss_of_zero():
    own, _, _, method = across()
    nothing = own | {k: torch.zeros_like(own[k]) for k in ("answer", "teacher_answer")}
    nothing["target"] = torch.full_like(own["target"], -100)
    loss = method.loss(nothing)
    assert loss.total() == 0
    loss.total().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_attention_looks_at_what_counts_alone():
    scores, values = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    broken = torch.where(mask[..., None], values, torch.nan)
    found = attend(scores, broken, mask)
    torch.testing.assert_close(found[0], scores[0][:, [0, 2]].softmax(-1) @ values[0][[0, 2]])
    assert (found[1] == 0).all()


def test_the_spread_is_that_of_a_samples_counted_numbers():
    x = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False], [False] * 3])
    found = spread(x, mask)
    torch.testing.assert_close(found[0, 0, 0], x[0, :2].std(correction=0))
    assert found[1].item() == 1
    assert not found.requires_grad


def test_any_divergence_of_token_kd_compares_in_the_students_space():
    own, student, teacher, method = same(divergence="reverse-kl")
    (h_s, W_s, b_s), (h_t, _, _) = said(student, own), said(teacher, own)
    z_s, z_ts = h_s @ W_s.T + b_s, method.to_student(h_t) @ W_s.T + b_s
    at = own["answer"]
    part = method.loss(own).parts["dskd.student"]
    torch.testing.assert_close(part.sum / part.count, kl(z_s[at], z_ts[at]).mean())


def test_maps_are_part_of_the_checkpoint_and_learn_with_the_student():
    _, student, _, method = across()
    assert {"to_student.weight", "to_teacher.weight", "query.weight"} <= set(method.state_dict())
    assert method.trainees() == {"student": [student.model, method]}
    assert same()[3].query is None


def test_it_says_what_it_needs():
    own = batch(ANSWERS)
    with pytest.raises(RecipeError, match="the student gives logits as a Tensor"):
        bound(DSKD(), *pair(whole=True), own)
    student, teacher = pair()
    teacher.model.get_input_embeddings = None
    with pytest.raises(RecipeError, match=r"the teacher \(Speaker\) has no get_input_embeddings"):
        bound(DSKD(), student, teacher, own)
