"""FIRST: the target by hand, limits, c recovered and kept over a restart, classifiers and language models, whole runs."""

import math

import pytest
import torch
from harness import Net, finish, rows, survives, toy
from harness import situation as classifying
from small_pictures import distilled as distilled_pictures
from torch import nn
from writers import distilled, doubled, settled, situation

from limbeck import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.evaluation import calibration
from limbeck.losses import kl
from limbeck.methods.first import FIRST, fitted
from limbeck.sketches import Sketch


def pair(data=None, sharp=1.0, **train):
    torch.manual_seed(0)
    teacher = Net(6, hidden=9)
    teacher.out.weight.data.mul_(sharp)
    return classifying(Student(Net(6), view="x"), Teacher(teacher, view="x"), data=data, **train)


def six(logits, k):
    """The k largest probabilities, their places, and what is left."""
    p, ids = logits.softmax(-1).topk(k, -1)
    return p, ids, 1 - p.sum(-1, keepdim=True)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("rest", ["bucket", "none"])
@pytest.mark.parametrize("reduction", ["tokens", "sequences"])
def test_of_a_language_model_it_is_the_papers_sum(whole, rest, reduction):
    where = doubled(situation(whole=whole))
    method = FIRST(k=3, c=1.7, rest=rest, reduction=reduction)
    batch = settled(method, where)
    loss = method.loss(batch).total()
    found = torch.autograd.grad(loss, list(where.student.model.parameters()))
    for model in (where.student.model, where.teacher.model):
        model.whole = True
    z, w = where.student.model(batch["input_ids"]), where.teacher.model(batch["input_ids"]).detach()
    p, ids, last = six(w, 3)
    q = z.softmax(-1).gather(-1, ids)
    if rest == "bucket":
        p, q = torch.cat([p, last], -1), torch.cat([q, 1 - q.sum(-1, keepdim=True)], -1)
    q = q / q.sum(-1, keepdim=True)
    target = (p.log() / 1.7).softmax(-1)
    values = (target * (target.log() - q.log())).sum(-1) * batch["answer"]
    expected = values.sum() / (batch["answer"].sum() if reduction == "tokens" else len(values))
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(found, torch.autograd.grad(expected, list(where.student.model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("k", [3, 5])
def test_with_all_classes_and_nothing_recalibrated_it_is_forward_kl(k):
    where, method = pair(), FIRST(k=k, recalibrate="none")
    batch = settled(method, where)
    z, w = where.student.model(batch["x"]), where.teacher.model(batch["x"])
    torch.testing.assert_close(method.loss(batch).total(), kl(z, w).mean())
    other = FIRST(k=k, c=1.0, rest="none")
    settle(other, where)
    torch.testing.assert_close(other.loss(batch).total(), kl(z, w).mean())


def test_smoothing_and_the_released_loss():
    where = pair(sharp=4.0)
    method = FIRST(k=2, recalibrate="smoothing", delta=0.02)
    batch = settled(method, where)
    z, w = where.student.model(batch["x"]), where.teacher.model(batch["x"])
    p, ids, last = six(w, 2)
    moved = ((p[:, :1] - p[:, 1:]) / 2).clamp(max=0.02)
    target = torch.cat([p[:, :1] - moved, p[:, 1:] + moved, last], 1)
    q = z.softmax(1).gather(1, ids)
    q = torch.cat([q, 1 - q.sum(1, keepdim=True)], 1)
    torch.testing.assert_close(method.loss(batch).total(), (target * (target / q).log()).sum(1).mean())
    plain = torch.cat([p, last], 1)
    released = FIRST(k=2, parity="released")
    settle(released, where)
    expected = plain.exp().amax(1) - (plain.exp() * q).sum(1)
    torch.testing.assert_close(released.loss(batch).total(), expected.mean())


def drawn(scale: float, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities that are `scale` times too sharp about labels that were drawn from the right ones."""
    g = torch.Generator().manual_seed(1)
    z = torch.randn(count, 4, generator=g, dtype=torch.float64)
    place = torch.multinomial(z.softmax(1), 1, generator=g).squeeze(1)
    log_p = (scale * z).log_softmax(1)
    return torch.cat([log_p, torch.full((count, 1), -math.inf, dtype=torch.float64)], 1), place


@pytest.mark.parametrize("by", ["trust", "likelihood"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_c_recovers_how_much_too_sure_a_teacher_is(by, scale):
    log_p, place = drawn(scale)
    assert fitted(log_p, place, by=by) == pytest.approx(scale, rel=0.12)


def test_likelihood_is_at_its_best_and_trust_is_no_worse_than_before():
    log_p, place = drawn(2.5, 300)
    c = torch.tensor(fitted(log_p, place, by="likelihood"), dtype=torch.float64, requires_grad=True)
    nll = -(log_p[:, :4] / c).log_softmax(1).gather(1, place[:, None]).mean()
    assert abs(float(torch.autograd.grad(nll, c)[0])) < 1e-3
    best = log_p[:, :4] / fitted(log_p, place, by="trust", bins=10)
    before, after = (calibration.ece(x, place, bins=10) for x in (log_p[:, :4], best))
    assert after < before / 2


def test_labels_that_are_not_known_are_wrong_for_trust_and_have_no_likelihood():
    log_p = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0]], dtype=torch.float64).log()
    never = torch.tensor([2, 2])
    assert fitted(log_p, never, by="likelihood") == 1.0
    # never right: best is the least sure, and c = 16 is the end of the search
    assert fitted(log_p, never, by="trust") == pytest.approx(16)
    assert fitted(log_p[:0], never[:0]) == 1.0


@pytest.mark.parametrize("sketches", [False, True])
def test_c_is_fitted_to_the_validation_rows(sketches, monkeypatch):
    where = pair(sharp=40.0)
    if sketches:
        given = where.teacher.model
        settle(FIRST(c=1.0), where)

        def asked(batch, reads=None):
            return {"logits": Sketch.top(given(batch["x"]), 3)}

        where.teacher.sketches = True
        monkeypatch.setattr(type(where.teacher), "__call__", lambda self, batch, reads=None: asked(batch))
        monkeypatch.setattr(type(where.teacher), "probe", lambda self, batch: self.shapes)
    method = FIRST(k=2, fit="likelihood", samples=9)
    settle(method, where)
    split = where.data.splits["validation"]
    some = torch.linspace(0, 11, 9).round().long()
    p, ids, last = six(where.teacher.model(split.tensors["x"][some]).detach().double(), 2)
    label = split.tensors["label"][some]
    place = torch.where((ids == label[:, None]).any(1), (ids == label[:, None]).long().argmax(1), 2)
    expected = fitted(torch.cat([p, last], 1).log(), place, by="likelihood")
    assert float(method.divisor) == pytest.approx(expected, rel=1e-2)
    assert expected > 1.5
    assert any(note.startswith("first: c = ") and "9 validation answers" in note for note in method.notices)


def test_of_a_language_model_every_answer_token_is_a_prediction():
    where, method = situation(whole=False), FIRST(k=2)
    settle(method, where)
    tokens = int(where.data.splits["validation"].tensors["answer"].sum())
    assert f"{tokens} validation answers" in method.notices[-1]


def test_a_resumed_run_has_the_c_it_began_with(tmp_path):
    def build():
        return FIRST(k=2, fit="likelihood"), pair(epochs=1, sharp=6.0)

    course = survives(build, tmp_path)
    kept = course.methods[0].state_dict()
    assert float(kept["divisor"]) != 1.0
    data = toy()
    data.splits["validation"] = rows(12, 500, 99)
    method = FIRST(k=2, fit="likelihood")
    settle(method, pair(data=data, sharp=6.0))
    assert float(method.divisor) != float(kept["divisor"])
    method.load_state_dict(kept)
    assert float(method.divisor) == float(kept["divisor"])


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_pieces_of_a_step_are_the_step(micro_batch, tmp_path):
    def build():
        return FIRST(k=3, reduction="sequences"), situation(whole=False, micro_batch=micro_batch, epochs=1, lr=0.1)

    found = survives(build, tmp_path).situation.student.model
    where = situation(whole=True, epochs=1, lr=0.1)
    expected = finish(lambda: (FIRST(k=3, reduction="sequences"), where)).situation.student.model
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_it_cannot_do_is_said():
    data = toy()
    del data.splits["validation"]
    with pytest.raises(RecipeError, match=r"no validation split\. Give it, or say what c is: first\.c=1"):
        settle(FIRST(), pair(data=data))
    settle(FIRST(c=2.0), pair(data=data))
    with pytest.raises(RecipeError, match="compares 1 with 1"):
        settle(FIRST(k=1, rest="none", c=1.0), pair())
    with pytest.raises(RecipeError, match="has a bucket for the rest"):
        settle(FIRST(rest="none", parity="released"), pair())
    where = pair()
    where.data.splits["validation"].tensors["label"] = torch.rand(12)
    with pytest.raises(RecipeError, match="column 'label' has none"):
        settle(FIRST(), where)

    class Silent(nn.Module):
        def forward(self, x):
            if len(x) > 4:
                raise RecipeError("nothing was stored about row 500.")
            return torch.zeros(len(x), 3) + 0 * x.sum()

    where = pair()
    where.teacher.model = Silent()
    with pytest.raises(RecipeError, match=r"nothing was stored about row 500\. Give it, or say what c is"):
        settle(FIRST(), where)


def test_it_runs_from_a_recipe(tmp_path):
    assert distilled_pictures("first", tmp_path / "pictures").result["status"] == "finished"
    assert distilled({"use": "first", "samples": 8}, tmp_path).result["status"] == "finished"
