import pytest
import torch
import torch.nn.functional as F
from layer_pairs import Pyramid, Vectors, data, keys, settled, situation

import limbeck
from limbeck.engine import checkpoint, weights
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods.kd import KD
from limbeck.methods.norm_and_direction import NormAndDirection
from limbeck.tasks import Task


def means(where) -> torch.Tensor:
    """The teacher's class means over the training rows, one row at a time."""
    rows = where.data["train"]
    found = where.teacher(rows.__getitems__(list(range(len(rows)))))["embedding"]
    return torch.stack([found[rows.tensors["label"] == c].mean(0) for c in range(3)])


def test_the_loss_is_the_papers_with_the_means_of_the_training_rows():
    where = situation(Pyramid(2), Pyramid(2))
    method = NormAndDirection(weight=1.5)
    batch = settled(method, where)
    torch.testing.assert_close(method.centres0, means(where))
    ours, theirs = where.student(batch), where.teacher(batch)["embedding"]
    f, e = ours["embedding"], F.normalize(means(where))[batch["label"]]
    nd = 1 - (f * e).sum(1) / torch.maximum(f.norm(dim=1), theirs.norm(dim=1))
    torch.testing.assert_close(
        method.loss(batch).total(), F.cross_entropy(ours["logits"], batch["label"]) + 1.5 * nd.mean()
    )
    assert not list(method.parameters())


def test_the_means_are_those_of_an_unshuffled_pass_in_pieces(monkeypatch):
    monkeypatch.setattr("limbeck.methods.norm_and_direction.ROWS", 5)
    where = situation()
    method = NormAndDirection()
    settled(method, where)
    torch.testing.assert_close(method.centres0, means(where))


def test_samples_that_do_not_count_are_in_neither_the_means_nor_the_loss():
    where = situation(Pyramid(2), Pyramid(2))
    known = torch.arange(12) % 4 != 0
    for split in where.data.splits.values():
        split.tensors["known"] = known
    method = NormAndDirection(mask="known")
    batch = settled(method, where)
    found = where.teacher(where.data["train"].__getitems__(list(range(12))))["embedding"]
    own = known & (where.data["train"].tensors["label"] == 1)
    torch.testing.assert_close(method.centres0[1], found[own].mean(0))
    signals = where.student(batch), where.teacher(batch)
    each = method._apart(0, signals[0]["embedding"], signals[1]["embedding"], batch["label"])
    torch.testing.assert_close(method.transfer(*signals, batch).total(), each[known[:8]].mean())


def test_another_width_goes_through_a_linear_map_with_batch_normalisation():
    where = situation(Pyramid(2), Pyramid(4))
    method = NormAndDirection()
    batch = settled(method, where)
    linear, norm = method.terms.bridges["direction0"]
    assert (linear.in_features, linear.out_features, norm.num_features) == (6, 12, 12)
    assert any("[6] is brought to the teacher's [12]" in said for said in method.notices)
    gradients = torch.autograd.grad(method.loss(batch).total(), list(method.parameters()))
    assert any(float(g.abs().max()) > 0 for g in gradients)


def test_a_students_feature_turns_to_its_class_and_grows_to_the_teachers_length():
    """Free features under the term alone: they end along the means, no shorter than the teacher's."""
    where = situation(Pyramid(2), Pyramid(2))
    method = NormAndDirection()
    batch = settled(method, where)
    free = (0.01 * torch.randn(8, 6, generator=torch.Generator().manual_seed(1))).requires_grad_()
    theirs = where.teacher(batch)["embedding"]
    optimiser = torch.optim.Adam([free], lr=0.02)
    for _ in range(400):
        optimiser.zero_grad()
        method._apart(0, free, theirs, batch["label"]).sum().backward()
        optimiser.step()
    assert (torch.cosine_similarity(free, method.centres0[batch["label"]]) > 0.999).all()
    assert (free.norm(dim=1) > 0.95 * theirs.norm(dim=1)).all()


def test_its_state_survives_a_checkpoint(tmp_path):
    first, second = NormAndDirection(), NormAndDirection()
    where = situation()
    batch = settled(first, where)
    settle(second, where)
    with torch.no_grad():
        first.centres0.mul_(-2)
        next(iter(first.parameters())).mul_(3)
    assert second.loss(batch).total() != first.loss(batch).total()
    stored = checkpoint.load(checkpoint.save(tmp_path, 0, {"method": weights.take(first)}))
    weights.give(second, stored["method"])
    assert torch.equal(second.loss(batch).total(), first.loss(batch).total())


@pytest.mark.parametrize(("student", "teacher"), [(Pyramid(2), Pyramid(4)), (Vectors(6), Pyramid(2))])
def test_kd_plus_plus_is_a_sum_and_runs_from_python(student, teacher, tmp_path):
    run = limbeck.distill(**keys(student, teacher), method="kd+nd", out=tmp_path / "run")
    log = (run.folder / "log.jsonl").read_text()
    assert all(f'"{part}"' in log for part in ("kl", "direction0", "task"))
    total = KD() + NormAndDirection()
    where = situation(student, teacher)
    batch = settled(total, where)
    assert set(total.loss(batch).parts) == {"kl", "direction0", "task"}


def test_a_class_without_rows_is_said_and_has_no_direction():
    where = situation()
    rows = data().splits["train"].tensors["label"]
    for split in where.data.splits.values():
        split.tensors["label"] = rows.clamp(max=1)
    method = NormAndDirection()
    settle(method, where)
    assert any("1 of 3 classes have no training row" in said for said in method.notices)
    assert method.centres0[2].eq(0).all()


def test_what_it_cannot_do_is_refused_at_setup():
    with pytest.raises(RecipeError, match=r"nd compares vectors; the student's layer1 has shape \[2, 8, 8\]"):
        settled(NormAndDirection(layers=["layer1"]), situation())
    where = situation()
    where.task = Task("regression")
    with pytest.raises(RecipeError, match="nd needs classes"):
        settled(NormAndDirection(), where)
