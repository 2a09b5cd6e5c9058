import json
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import trained, wrapped

from limbeck.language.alignment import groups
from limbeck.language.crossing import constant, numbered, partners, per_sample, placed, retold, rows_at
from limbeck.language.pieces import pieces, spans
from limbeck.language.prompts import columns_of
from limbeck.language.tokens import Tokens
from limbeck.signals import Projection
from limbeck.sketches import Sketch

group_rows = st.lists(st.lists(st.integers(-1, 5), min_size=6, max_size=6), min_size=2, max_size=2)


@given(group_rows, group_rows, st.booleans())
@settings(max_examples=40)
def test_partners_are_the_last_or_first_tokens_of_chunks_that_both_have(ours, theirs, first):
    found = partners(torch.tensor(ours), torch.tensor(theirs), first=first)
    for a, b, row in zip(ours, theirs, found.tolist()):
        for i, n in enumerate(a):
            ends = [j for j, m in enumerate(a) if m == n]
            others = [j for j, m in enumerate(b) if m == n]
            here = n >= 0 and bool(others) and i == (min(ends) if first else max(ends))
            assert row[i] == ((min(others) if first else max(others)) if here else -1)


def test_teachers_rows_may_be_longer_or_shorter():
    ours, theirs = torch.tensor([[0, 1]]), torch.tensor([[-1, 0, 0, 0, 1]])
    assert partners(ours, theirs).tolist() == [[3, 4]]
    assert partners(theirs, ours).tolist() == [[-1, -1, -1, 0, 1]]


def test_rows_are_counted_through_and_values_go_back_to_their_places():
    partner = torch.tensor([[-1, 2, -1], [0, -1, 3]])
    ours, theirs = rows_at(partner, 4)
    assert ours.tolist() == [1, 3, 5]
    assert theirs.tolist() == [2, 4, 7]
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    back = placed(values, ours, partner)
    assert back.tolist() == [[0, 1, 0], [2, 0, 3]]
    (slope,) = torch.autograd.grad((back * torch.arange(6.0).view(2, 3)).sum(), values)
    assert slope.tolist() == [1, 3, 5]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3))
@settings(max_examples=40)
def test_weights_make_the_mean_one_of_samples_and_numbers_count_answers(rows):
    answer = torch.tensor(rows)
    weight = per_sample(answer)
    torch.testing.assert_close(weight.sum(1), answer.any(1).float())
    assert ((weight > 0) == answer).all()
    for row, numbers in zip(rows, numbered(answer).tolist()):
        assert [n for n in numbers if n >= 0] == list(range(sum(row)))
        assert [n >= 0 for n in numbers] == row


def test_a_constant_has_no_graph_whatever_its_form():
    weight, bias, hidden = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (5,), (2, 3)))
    z = constant(Projection(hidden, weight, bias, 0.5, 2.0))
    assert not z.materialise().requires_grad
    torch.testing.assert_close(z.materialise(), Projection(hidden, weight, bias, 0.5, 2.0).materialise().detach())
    assert not constant(hidden).requires_grad
    assert constant(Projection(hidden, weight)).bias is None
    sketch = Sketch(torch.zeros(1, 1, 1).long(), torch.zeros(1, 1, 1), torch.zeros(1, 1), 3)
    assert constant(sketch) is sketch


@cache
def tokens(kind: str) -> Tokens:
    return Tokens(trained(kind))


said = st.lists(st.sampled_from(["the", " fox", " hello", "é", "数学", "!", "\n", "ther"]), max_size=6).map("".join)


@pytest.mark.parametrize(
    "kinds", [("bytes", "byte-level"), ("byte-level", "metaspace, no space in front"), ("byte-level", "bytes")]
)
@given(text=said, ended=st.booleans())
@settings(max_examples=25)
def test_an_answer_is_retold_byte_by_byte(kinds, text, ended):
    mine, theirs = map(tokens, kinds)
    prompt, other = mine.encode("the dog"), theirs.encode("dog the")
    ids = [*prompt, *mine.encode(text), *(mine.eos[:1] if ended else ())]
    size = torch.tensor([len(prompt)])
    written = columns_of(torch.tensor([ids]), size, torch.tensor([len(ids)]), pad=0)
    old = columns_of(torch.tensor([[*other, 5, 6]]), torch.tensor([len(other)]), torch.tensor([len(other) + 2]), pad=0)
    found = retold({f"teacher_{k}": v for k, v in old.items()}, written, mine, theirs)
    told = found["teacher_target"][found["teacher_answer"]].tolist()
    assert found["teacher_input_ids"][0, : len(other)].tolist() == other
    assert b"".join(pieces(theirs.tokenizer)[i] for i in told) == text.encode()
    assert (told[-1:] == list(theirs.eos[:1])) == ended
    ours = ids[len(prompt) :]
    bodies = [x[:-1] if ended else x for x in (ours, told)]
    expected = groups(spans(mine.tokenizer, bodies[0], text), spans(theirs.tokenizer, bodies[1], text))
    last = max(expected[0].max(initial=-1), -1) + 1
    for name, answer, numbers in zip(("group", "teacher_group"), ("answer", "teacher_answer"), expected):
        assert found[name][found[answer]].tolist() == numbers.tolist() + ([last] if ended else [])
        assert (found[name][~found[answer]] == -1).all()


def test_what_cannot_be_placed_is_in_no_chunk():
    # a tokenizer that lower-cases: sampled tokens are none that it would choose itself
    from tokenizers import Tokenizer

    backend = json.loads(trained("unigram, NFKC and lower case").backend_tokenizer.to_str())
    mine = Tokens(wrapped(Tokenizer.from_str(json.dumps(backend)), unk_token="<unk>"))
    theirs = Tokens(trained("bytes"))
    ids = [mine.tokenizer.convert_tokens_to_ids(t) for t in ("▁t", "h", "e", "<unk>", "▁", "h")]
    written = columns_of(torch.tensor([[5, *ids]]), torch.tensor([1]), torch.tensor([7]), pad=0)
    old = columns_of(torch.tensor([[5, 6]]), torch.tensor([1]), torch.tensor([2]), pad=0)
    found = retold({f"teacher_{k}": v for k, v in old.items()}, written, mine, theirs)
    assert found["group"].shape == written["input_ids"].shape
    assert set(found["group"][found["group"] >= 0].tolist()) == set(
        found["teacher_group"][found["teacher_group"] >= 0].tolist()
    )
