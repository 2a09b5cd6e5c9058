"""GOLD: chunks' merged distributions, matched tokens directly, the others by size; the student's own texts retold to the teacher."""

import pytest
import torch
from two_vocabularies import ANSWERS, END, OURS, THEIRS, Words, batch, bound, pair

from limbeck.language.crossing import retold
from limbeck.method import Progress
from limbeck.methods.gold import GOLD, cooled
from limbeck.signals import Projection

MATCHED = [(i, THEIRS.index(piece)) for i, piece in enumerate(OURS) if piece in THEIRS and piece]


def whole(z):
    return z if isinstance(z, torch.Tensor) else z.materialise()


def divergence(p, q, beta, mass=True):
    p, q = p.clamp(min=1e-8), q.clamp(min=1e-8)
    if beta in (0, 1):
        a, b = (p, q) if beta == 0 else (q, p)
        return (a * (a / b).log()).sum() + (b - a).sum() * mass
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()


def merged(p, ids, group, n, observed):
    """The distribution of a chunk: one token's, times what the others had."""
    at = [i for i, g in enumerate(group) if g == n]
    if observed:  # rows of one token later, the first one's distribution
        rest = [p[i + 1, ids[i + 1]] for i in at[1:]]
        return p[at[0] + 1] * (torch.stack(rest).prod() if rest else 1)
    rest = [p[i, ids[i + 1]] for i in at[:-1]]
    return p[at[-1]] * (torch.stack(rest).prod() if rest else 1)


def expected(student, teacher, own, *, beta=0.5, temperature=1.0, observed=False, mass=True, weights=None):
    q, p = ((whole(actor(own)["logits"]) / temperature).softmax(-1) for actor in (student, teacher))
    share = len(MATCHED) / len(THEIRS)
    w_m, w_u = weights or (share, 1 - share)
    ours, theirs = ([pair_[side] for pair_ in MATCHED] for side in (0, 1))
    others = [[i for i in range(len(v)) if i not in taken] for v, taken in ((OURS, ours), (THEIRS, theirs))]
    samples = []
    for b in range(len(q)):
        groups = own["group"][b].tolist(), own["teacher_group"][b].tolist()
        rows = []
        for n in range(max(groups[0])):  # the last chunk is the end, and left out
            Q = merged(q[b], own["input_ids"][b], groups[0], n, observed)
            P = merged(p[b], own["teacher_input_ids"][b], groups[1], n, observed)
            rest = [x[i].sort(descending=True).values for x, i in ((Q, others[0]), (P, others[1]))]
            size = max(map(len, rest))
            a, c = (torch.cat([x, x.new_zeros(size - len(x))]) for x in rest)
            rows.append(w_m * divergence(P[theirs], Q[ours], beta, mass) + w_u * (a - c).abs().sum())
        samples.append(torch.stack(rows).mean())
    return torch.stack(samples).mean()


def off_policy(student, teacher, own, **options) -> GOLD:
    return bound(GOLD(student_share=0, **options), student, teacher, own)


@pytest.mark.parametrize("multiplied", [True, False])
@pytest.mark.parametrize(
    ("merge", "beta"), [("bayesian", 0.5), ("bayesian", 0.0), ("bayesian", 1.0), ("observed", 0.3)]
)
def test_value_and_gradients_are_those_of_the_formula(multiplied, merge, beta):
    own = batch(ANSWERS)
    student, teacher = pair(whole=multiplied)
    method = off_policy(student, teacher, own, beta=beta, merge=merge, temperature=1.5)
    total = method.loss(method.draw(own)).total()
    other = expected(student, teacher, own, beta=beta, temperature=1.5, observed=merge == "observed")
    torch.testing.assert_close(total, other, check_dtype=False)
    parameters = list(student.model.parameters())
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(other, parameters)):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_weights_and_the_masses_can_be_set_as_trl_has_them():
    own = batch(ANSWERS)
    student, teacher = pair()
    for options, other in (
        ({"matched_weight": 0.2}, {"weights": (0.2, 0.8)}),
        ({"matched_weight": 1, "unmatched_weight": 2}, {"weights": (1, 2)}),
        ({"beta": 0.0, "mass": False}, {"beta": 0.0, "mass": False}),
    ):
        method = off_policy(student, teacher, own, **options)
        torch.testing.assert_close(
            method.loss(method.draw(own)).total(), expected(student, teacher, own, **other), check_dtype=False
        )


def test_matched_are_tokens_that_spell_the_same_one_to_one():
    own = batch(ANSWERS)
    ours, theirs = [*OURS, b"a"], [*THEIRS, b"b", b"b"]  # as byte fallback has them: the same bytes twice
    student, teacher = pair(ours=ours, theirs=theirs)
    method = off_policy(student, teacher, own)
    pairs = method.matched.T.tolist()
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs) == 4
    assert all(ours[i] == theirs[j] for i, j in pairs)
    assert sorted([*method.matched[0].tolist(), *method.unmatched_0.tolist()]) == list(range(len(ours)))
    assert sorted([*method.matched[1].tolist(), *method.unmatched_1.tolist()]) == list(range(len(theirs)))
    assert any("of the teacher's 16 tokens" in notice for notice in method.notices)


def test_with_one_tokenizer_it_is_the_divergence_of_every_token():
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS)
    method = off_policy(student, teacher, own, beta=0.0, matched_weight=1, unmatched_weight=1)
    q, p = (whole(actor(own)["logits"]).softmax(-1) for actor in (student, teacher))
    counts = own["answer"] & (own["target"] != END)
    # all tokens but the end are matched; the end of the one is compared with the end of the other
    values = (p * (p / q).log() - p + q)[..., 1:].sum(-1) + (p - q)[..., 0].abs()
    per_sample = torch.where(counts, values, 0).sum(1) / counts.sum(1)
    torch.testing.assert_close(method.loss(method.draw(own)).total(), per_sample.mean(), check_dtype=False)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS, width=3)
    student.model.load_state_dict(teacher.model.state_dict())
    for beta in (0, 0.5, 1):
        method = off_policy(student, teacher, own, beta=beta)
        assert method.loss(method.draw(own)).total().abs() < 1e-12


def test_the_padding_of_a_head_is_nothing():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = off_policy(student, teacher, own)
    before = method.loss(method.draw(own)).total()
    for actor in (student, teacher):
        head = actor.model.head
        wide = torch.nn.Linear(head.in_features, head.out_features + 7).double()
        with torch.no_grad():
            wide.weight[: head.out_features], wide.bias[: head.out_features] = head.weight, head.bias
        actor.model.head = wide
    wider = off_policy(student, teacher, own)
    torch.testing.assert_close(wider.loss(wider.draw(own)).total(), before)


def test_cooled_factors_are_the_cooled_product():
    z = Projection(torch.randn(2, 3), torch.randn(5, 3), torch.randn(5), 0.7, 2.0)
    torch.testing.assert_close(cooled(z, 1.7).materialise(), z.materialise() / 1.7)
    assert cooled(z, 1) is z


def test_no_gradient_reaches_the_teacher_and_nothing_that_counts_is_zero():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = off_policy(student, teacher, own)
    drawn = method.draw(own)
    method.loss(drawn).total().backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    nothing = {**own, **{k: torch.full_like(own[k], -1) for k in ("group", "teacher_group")}}
    loss = method.loss(method.draw(nothing))
    assert loss.total() == 0
    assert loss.parts["gold"].count == 0
    assert method.loss(drawn).parts["gold"].mask is drawn["gold_weight"]


class Spelling(Words):
    """Letters to tokens and back, as the writing student and the listening teacher need it."""

    class _Tokenizer:
        def __init__(self, words):
            self.words, self.all_special_ids, self.added_tokens_decoder, self.unk_token_id = words, [END], {}, None

        def __len__(self):
            return self.words.size

        def get_vocab(self):
            return {piece.decode() or "<end>": i for i, piece in enumerate(self.words.pieces)}

        def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
            assert skip_special_tokens
            assert not clean_up_tokenization_spaces
            return b"".join(self.words.pieces[i] for i in ids).decode()

    def __init__(self, pieces):
        super().__init__(pieces)
        self.tokenizer = self._Tokenizer(self)

    def continuing(self, text):
        class Found:
            ids = []

        found, at = Found(), 0
        found.ids = []
        while at < len(text):
            piece = next(text[at : at + n] for n in (2, 1) if text[at : at + n].encode() in self.pieces)
            found.ids.append(self.pieces.index(piece.encode()))
            at += len(piece)
        return found


def test_answers_that_the_student_wrote_are_retold_with_their_chunks():
    own = batch([("ab", "c"), ("c", "ab ab"), ("b", "c")])
    mine, theirs = Spelling(OURS), Spelling(THEIRS)
    told = batch([("ab", "ab ca"), ("c", ""), ("b", "cab")])  # what it wrote; the last row without an end
    written = {k: v for k, v in told.items() if not k.startswith("teacher_") and k != "group"}
    at = int(written["answer"][2].nonzero().max())
    written["answer"][2, at] = False
    found = retold(own, written, mine, theirs)
    assert torch.equal(found["input_ids"], written["input_ids"])
    for row in (0, 1):
        for name in ("teacher_input_ids", "teacher_answer", "teacher_group", "group"):
            a, b = found[name][row], told[name][row]
            size = min(len(a), len(b))
            assert a[:size].tolist() == b[:size].tolist(), name
            assert set(a[size:].tolist()) | set(b[size:].tolist()) <= {0, -1}
    assert (found["group"][2] >= 0).sum() == 3  # c, a, b: no end
    assert (found["teacher_target"][2] >= 0).sum() == 2  # c, ab
    assert found["teacher_group"][2].max() == found["group"][2].max() == 1


def test_in_its_share_of_steps_the_student_writes_and_the_teacher_reads_that():
    own = batch([("ab", "c"), ("c", "ab ab"), ("b", "c")])
    student, teacher = pair()
    student._tokenizer, teacher._tokenizer = Spelling(OURS), Spelling(THEIRS)
    method = bound(GOLD(student_share=1.0, max_new_tokens=5), student, teacher, own)
    object.__setattr__(method, "progress", Progress(step=3, steps=10))
    drawn = method.draw(own)
    assert (drawn["target"] == -100).all()  # the student's own words are no labels
    prompts = [2, 1, 1]
    for row, n in enumerate(prompts):
        assert drawn["input_ids"][row, :n].tolist() == own["input_ids"][row, :n].tolist()
        assert drawn["teacher_input_ids"][row, :n].tolist() == own["teacher_input_ids"][row, :n].tolist()
        ours = b"".join(OURS[i] for i in drawn["input_ids"][row, n:].tolist())
        theirs = b"".join(THEIRS[i] for i in drawn["teacher_input_ids"][row, n:].tolist())
        assert ours == theirs
    again = method.draw(own)
    assert torch.equal(again["input_ids"], drawn["input_ids"])
    loss = method.loss(drawn)
    assert loss.total().isfinite()
    assert loss.parts["gold"].count.item() == pytest.approx((drawn["gold_partner"] >= 0).any(1).sum().item())
    object.__setattr__(method, "student_share", lambda progress: 0.0)
    assert torch.equal(method.draw(own)["input_ids"], own["input_ids"])
