"""MinED: the teacher's mass on the student's tokens, compared where both are about to go on with the same text."""

import pytest
import torch
from two_vocabularies import ANSWERS, OURS, THEIRS, batch, bound, pair

from limbeck import RecipeError
from limbeck.language.alignment import edits
from limbeck.methods.mined import MinED


def whole(z):
    return z if isinstance(z, torch.Tensor) else z.materialise()


@pytest.mark.parametrize("multiplied", [True, False])
@pytest.mark.parametrize("matches", ["nearest", "exact"])
def test_value_and_gradients_are_those_of_the_formula(multiplied, matches):
    own = batch(ANSWERS)
    student, teacher = pair(whole=multiplied)
    method = bound(MinED(temperature=2.0, weight=0.7, task_weight=0.0, matches=matches), student, teacher, own)
    total = method.loss(method.draw(own)).total()
    q, p = ((whole(actor(own)["logits"]) / 2).softmax(-1) for actor in (student, teacher))
    values = []
    for b, (mine, other) in enumerate(zip(own["group"].tolist(), own["teacher_group"].tolist())):
        for n in range(max(mine) + 1):
            carried = torch.zeros(len(OURS), dtype=torch.float64)
            for i, j in enumerate(method.mapping.tolist()):
                if j >= 0:
                    carried[j] = carried[j] + p[b, other.index(n), i].detach()
            carried = carried / carried.sum()
            values.append((torch.xlogy(carried, carried) - carried * q[b, mine.index(n)].log()).sum())
    expected = 0.7 * 4 * torch.stack(values).mean()
    torch.testing.assert_close(total, expected)
    parameters = list(student.model.parameters())
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(a, b)


def test_every_token_goes_to_the_most_similar_one_and_ends_to_ends():
    own = batch(ANSWERS)
    method = bound(MinED(), *pair(), own)
    assert method.mapping[0] == 0
    for piece, j in list(zip(THEIRS, method.mapping.tolist()))[1:]:
        assert edits(piece, OURS[j]) == min(edits(piece, other) for other in OURS if other)
    left = bound(MinED(matches="exact"), *pair(), own).mapping.tolist()
    assert [j for j in left if j >= 0] == [0, 1, 2, 3, 4]
    assert "36% of the teacher's 14 tokens" in method.notices[0]


def test_with_one_tokenizer_it_is_the_divergence_of_every_token():
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS)
    method = bound(MinED(task_weight=0), student, teacher, own)
    q, p = (whole(actor(own)["logits"]).log_softmax(-1)[own["answer"]] for actor in (student, teacher))
    torch.testing.assert_close(method.loss(method.draw(own)).total(), (p.exp() * (p - q)).sum(-1).mean())
    student.model.load_state_dict(pair(theirs=OURS, width=3)[0].model.state_dict())


def test_no_gradient_reaches_the_teacher_and_nothing_that_counts_is_zero():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(MinED(task_weight=0), student, teacher, own)
    drawn = method.draw(own)
    loss = method.loss(drawn)
    loss.total().backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert loss.parts["mined"].mask is drawn["mined_counts"]
    nothing = own | {k: torch.full_like(own[k], -1) for k in ("group", "teacher_group")}
    silent = method.loss(method.draw(nothing))
    assert silent.total() == 0
    assert silent.parts["mined"].count == 0


def test_it_says_what_it_needs():
    student, teacher = pair()
    student._tokenizer = None
    with pytest.raises(RecipeError, match="no tokenizer lies beside the student"):
        bound(MinED(), student, teacher, batch(ANSWERS))
