"""ALM: likelihoods of chunks from the tokens of both sides, and which chunks are compared."""

import math

import pytest
import torch
from two_vocabularies import ANSWERS, OURS, THEIRS, batch, bound, pair

from limbeck import RecipeError
from limbeck.losses.across_tokenizers import binarised
from limbeck.methods.alm import ALM, log_mass


def whole(z):
    return z if isinstance(z, torch.Tensor) else z.materialise()


def likelihoods(actor, own, prefix=""):
    """For each row the log-likelihood of each chunk, token by token."""
    z = whole(actor(own)["logits"]).log_softmax(-1)
    found = []
    for b, (group, target) in enumerate(zip(own[f"{prefix}group"].tolist(), own[f"{prefix}target"].tolist())):
        sums = {}
        for i, (n, token) in enumerate(zip(group, target)):
            if n >= 0:
                sums[n] = sums.get(n, 0) + z[b, i, token]
        found.append(sums)
    return found


def merged(rows, closes):
    """Chunks put together until one closes; what is never closed is left out."""
    found = []
    for sums, flags in zip(rows, closes):
        row, open_ = [], 0
        for n in sorted(sums):
            open_ = open_ + sums[n]
            if flags[n]:
                row.append(open_)
                open_ = 0
        found.append(row)
    return found


def expected(student, teacher, own, closes=None, **options):
    sides = [likelihoods(actor, own, prefix) for actor, prefix in ((student, ""), (teacher, "teacher_"))]
    closes = closes or [dict.fromkeys(row, True) for row in sides[0]]
    s, t = (torch.stack([x for row in merged(side, closes) for x in row]) for side in sides)
    return binarised(s, t, **options).mean()


@pytest.mark.parametrize("multiplied", [True, False])
@pytest.mark.parametrize("form", ["binary-ce", "binary-kl", "limit", "abs"])
def test_value_and_gradients_are_those_of_the_formula(multiplied, form):
    own = batch(ANSWERS)
    student, teacher = pair(whole=multiplied)
    method = bound(ALM(chunks="all", form=form, temperature=3.0, weight=0.7), student, teacher, own)
    total = method.loss(method.draw(own)).total()
    other = 0.7 * expected(student, teacher, own, form=form, temperature=3.0)
    torch.testing.assert_close(total, other)
    parameters = list(student.model.parameters())
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(other, parameters)):
        torch.testing.assert_close(a, b)


def test_with_one_tokenizer_a_chunk_is_a_token():
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS)
    method = bound(ALM(chunks="all", form="abs"), student, teacher, own)
    s, t = (whole(actor(own)["logits"]).log_softmax(-1) for actor in (student, teacher))
    token = own["target"].clamp(min=0)[..., None]
    gap = (s.gather(-1, token) - t.gather(-1, token)).abs().squeeze(-1)[own["answer"]].mean()
    torch.testing.assert_close(method.loss(method.draw(own)).total(), gap)


def test_a_student_that_is_its_teacher_has_the_least_loss_and_no_gradient():
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS, width=3)
    student.model.load_state_dict(teacher.model.state_dict())
    for form, chunks in (("binary-kl", "all"), ("binary-ce", "space"), ("limit", "unbiased")):
        method = bound(ALM(form=form, chunks=chunks, temperature=2), student, teacher, own)
        total = method.loss(method.draw(own)).total()
        for gradient in torch.autograd.grad(total, list(student.model.parameters())):
            assert gradient.abs().max() < 1e-7


def test_a_letter_model_that_is_the_pair_model_letter_by_letter_agrees_on_every_chunk():
    # p(pair) = p(first letter) p(second | first): the teacher's chance of a token is that of its letters
    class ByLetter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, input_ids):
            z = torch.zeros(*input_ids.shape, len(OURS), dtype=torch.float64)
            return {"logits": z.log_softmax(-1) * self.scale}

    class ByPair(ByLetter):
        def forward(self, input_ids):
            z = torch.zeros(*input_ids.shape, len(THEIRS), dtype=torch.float64)
            for i, piece in enumerate(THEIRS):
                z[..., i] = -math.log(len(OURS)) * max(1, len(piece))
            rest = z.logsumexp(-1, keepdim=True)
            assert (rest < 0.7).all()
            return {"logits": z * self.scale}

    from limbeck import Student, Teacher

    own = batch([("a", "ab c"), ("b", "aabb")])
    student, teacher = Student(ByLetter()), Teacher(ByPair())
    method = bound(ALM(chunks="all", form="abs"), student, teacher, own)
    z = teacher(own)["logits"].logsumexp(-1)[0, 0]  # what is missing to a distribution, once per token of the teacher
    tokens = (own["teacher_group"] >= 0).sum()
    chunks = (own["group"].max(1).values + 1).sum()
    torch.testing.assert_close(method.loss(method.draw(own)).total() * chunks, tokens * z)


def test_space_merges_chunks_until_a_word_is_over():
    own = batch([("a", "ab b a"), ("a", "abab")])
    student, teacher = pair()
    method = bound(ALM(chunks="space", form="abs"), student, teacher, own)
    closes = []
    for row in range(2):
        pieces = {}
        for n, token in zip(own["group"][row].tolist(), own["target"][row].tolist()):
            if n >= 0 and n not in pieces:
                pieces[n] = OURS[token]
        last = max(pieces)
        closes.append({n: n == last or pieces[n + 1].startswith(b" ") or not pieces[n + 1] for n in pieces})
    assert closes[1][0] is False
    torch.testing.assert_close(
        method.loss(method.draw(own)).total(), expected(student, teacher, own, closes, form="abs")
    )


def test_unbiased_closes_a_chunk_only_where_the_teacher_forbids_nothing_that_the_student_allows():
    own = batch([("c", "ab"), ("c", "a"), ("c", "ca")])  # teacher: ab; a; c|a (no token begins with c but c)
    student, teacher = pair()
    strict = bound(ALM(chunks="unbiased", threshold=0.0, form="abs"), student, teacher, own)
    # "a" is biased (ab, aa, ac are tokens, and ab is seen), "c" and "ab" are not; the end is not, and takes "a" along
    closes = [{0: True, 1: True}, {0: False, 1: True}, {0: True, 1: False, 2: True}]
    assert own["group"].max(1).values.tolist() == [1, 1, 2]
    torch.testing.assert_close(
        strict.loss(strict.draw(own)).total(), expected(student, teacher, own, closes, form="abs")
    )
    loose = bound(ALM(chunks="unbiased", threshold=1.0, form="abs"), student, teacher, own)
    torch.testing.assert_close(loose.loss(loose.draw(own)).total(), expected(student, teacher, own, form="abs"))


def test_a_biased_chunk_that_nothing_follows_is_left_out():
    own = batch([("c", "ab"), ("c", "ba")])
    cut = own | {k: own[k][:, :-1] for k in own if own[k].dim() > 1}  # without the end of the longer side
    for prefix in ("", "teacher_"):
        end = cut[f"{prefix}target"] == 0
        cut[f"{prefix}answer"] = cut[f"{prefix}answer"] & ~end
        cut[f"{prefix}group"] = torch.where(end, -1, cut[f"{prefix}group"])
        cut[f"{prefix}target"] = torch.where(end, -100, cut[f"{prefix}target"])
    student, teacher = pair()
    cut["teacher_target"][1, 0], cut["teacher_input_ids"][1, 1] = 1, 1  # "a": biased, and the last chunk
    method = bound(ALM(chunks="unbiased", threshold=0.0), student, teacher, cut)
    counts = method.draw(cut)["alm_counts_1"]
    assert counts[0].sum() == 1
    assert counts[1].sum() == 0


def test_sizes_take_consecutive_chunks_together():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ALM(chunks="all", form="abs", sizes=[1, 2]), student, teacher, own)
    sides = [likelihoods(actor, own, prefix) for actor, prefix in ((student, ""), (teacher, "teacher_"))]
    pairs = [dict.fromkeys(row, True) | {n: n % 2 == 1 or n == max(row) for n in row} for row in sides[0]]
    one, two = (expected(student, teacher, own, closes, form="abs") for closes in (None, pairs))
    torch.testing.assert_close(method.loss(method.draw(own)).total(), (one + two) / 2)


def test_append_space_asks_for_the_end_of_the_word_as_well():
    own = batch([("a", "ab b")])
    student, teacher = pair()
    method = bound(ALM(chunks="all", form="abs", append_space=True), student, teacher, own)
    s, t = (whole(actor(own)["logits"]).softmax(-1)[0] for actor in (student, teacher))
    sides = [likelihoods(actor, own, prefix)[0] for actor, prefix in ((student, ""), (teacher, "teacher_"))]
    ours = [i for i, piece in enumerate(OURS) if piece.startswith(b" ") or not piece]
    theirs = [i for i, piece in enumerate(THEIRS) if piece.startswith(b" ") or not piece]
    gaps = []
    for n in sides[0]:
        at = own["group"][0].tolist()[::-1].index(n), own["teacher_group"][0].tolist()[::-1].index(n)
        at = own["group"].shape[1] - 1 - at[0], own["teacher_group"].shape[1] - 1 - at[1]
        ends = own["target"][0, at[0]] == 0
        more = (0, 0) if ends else (s[at[0] + 1, ours].sum().log(), t[at[1] + 1, theirs].sum().log())
        gaps.append((sides[0][n] + more[0] - sides[1][n] - more[1]).abs())
    torch.testing.assert_close(method.loss(method.draw(own)).total(), torch.stack(gaps).mean())


def test_log_mass_is_the_log_of_the_sum_and_padding_of_the_head_is_nothing():
    z = torch.randn(3, 6, dtype=torch.float64)
    members = torch.tensor([True, False, True, False])
    p = z[:, :4].softmax(-1)
    torch.testing.assert_close(log_mass(members)(z), (p[:, 0] + p[:, 2]).log())


def test_pieces_of_a_batch_add_up_and_are_counted_from_the_batch():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ALM(chunks="space"), student, teacher, own)
    drawn = method.draw(own)
    whole_, parts = method.loss(drawn), [method.loss({k: v[i : i + 1] for k, v in drawn.items()}) for i in range(4)]
    sums = [sum(p.parts["alm"].sum for p in parts), sum(p.parts["alm"].count for p in parts)]
    torch.testing.assert_close(sums[0] / sums[1], whole_.total())
    assert whole_.parts["alm"].mask is drawn["alm_counts_1"]
    nothing = drawn | {k: torch.full_like(v, -1) for k, v in own.items() if "group" in k}
    silent = method.loss(method.draw(nothing))
    assert silent.total() == 0
    assert silent.parts["alm"].count == 0


def test_no_gradient_reaches_the_teacher():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ALM(), student, teacher, own)
    method.loss(method.draw(own)).total().backward()
    assert all(p.grad is None for p in teacher.model.parameters())


def test_it_says_what_it_needs():
    own = batch(ANSWERS)
    student, teacher = pair()
    teacher._tokenizer = None
    with pytest.raises(RecipeError, match="no tokenizer lies beside the teacher"):
        bound(ALM(), student, teacher, own)
    bound(ALM(chunks="all"), student, teacher, own)
    with pytest.raises(RecipeError, match="names a size twice"):
        bound(ALM(sizes=[2, 2]), *pair(), own)
    with pytest.raises(RecipeError, match="alm.form"):
        ALM(form="binary")
