import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data.tensors import TensorSplit
from limbeck.language.bias import Biases, counts_of

BYTES = [bytes([b]) for b in b"abc "]
COUNTS = torch.ones(4, dtype=torch.int64)


def one(theirs, counts, token, ours=BYTES, seen=COUNTS, other=b"a"):
    biases = Biases(theirs, torch.tensor(counts), ours, seen)
    return biases.of(torch.tensor([[theirs.index(token), ours.index(other)]])).item()


def test_by_hand_against_bytes_which_forbid_nothing():
    theirs = [b"a", b"ab", b"abc", b"b"]
    assert one(theirs, [6, 3, 1, 5], b"a") == pytest.approx(4 / 10)  # "a" went on to "ab" or "abc" in 4 of 10 cases
    assert one(theirs, [6, 3, 1, 5], b"ab", other=b"b") == pytest.approx(1 / 4)
    assert one(theirs, [6, 3, 1, 5], b"b", other=b"b") == 0
    assert one(theirs, [6, 0, 0, 5], b"a") == 0  # what is never seen forbids nothing that matters


def test_what_both_forbid_is_no_bias():
    theirs, ours = [b"a", b"ab", b"ac"], [b"xa", b"xab", b"b"]
    # after the teacher's "a" neither b nor c comes, after the student's "xa" no b: c alone makes a difference
    biases = Biases(theirs, torch.tensor([5, 3, 2]), ours, torch.tensor([5, 5, 1]))
    assert biases.of(torch.tensor([[0, 0]])).item() == pytest.approx(2 / 10)
    only_b = Biases(theirs[:2], torch.tensor([5, 3]), ours, torch.tensor([5, 5, 1]))
    assert only_b.of(torch.tensor([[0, 0]])).item() == 0


def test_a_shorter_way_on_forbids_the_longer_ones():
    theirs, ours = [b"a", b"abc"], [b"a", b"ab"]
    # the teacher forbids "bc", the student "b", so "bc" as well; the student's "b" is allowed to the teacher
    biases = Biases(theirs, torch.tensor([5, 5]), ours, torch.tensor([8, 2]))
    assert biases.of(torch.tensor([[0, 0]])).item() == pytest.approx(2 / 10)


vocabularies = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)


@given(vocabularies, st.data())
@settings(max_examples=40)
def test_a_vocabulary_has_no_bias_against_itself_and_every_bias_is_a_share(names, data):
    pieces = [name.encode() for name in names]
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=len(pieces), max_size=len(pieces))))
    biases = Biases(pieces, counts, pieces, counts)
    pairs = torch.cartesian_prod(torch.arange(len(pieces)), torch.arange(len(pieces))).view(-1, 2)
    values = biases.of(pairs)
    assert ((values >= 0) & (values <= 1)).all()
    assert (values[pairs[:, 0] == pairs[:, 1]] == 0).all()
    exchanged = Biases(pieces, counts, pieces, counts).of(pairs.flip(1))
    assert torch.equal(values, exchanged)


def test_no_pairs_and_special_tokens():
    biases = Biases([b"", b"a"], torch.tensor([3, 1]), [b"a", b""], torch.tensor([1, 3]))
    assert biases.of(torch.zeros(0, 2, dtype=torch.int64)).tolist() == []


def test_counts_are_those_of_the_targets():
    target = torch.tensor([[1, 1, -100], [2, -100, 1]])
    own = {"target": target, "teacher_target": torch.tensor([[0, -100], [0, 3]])}
    ours, theirs = counts_of(TensorSplit(own), 4, 5)
    assert ours.tolist() == [0, 3, 1, 0]
    assert theirs.tolist() == [2, 0, 0, 1, 0]
    both = counts_of(TensorSplit({"target": target}), 4, 4)
    assert both[0].tolist() == both[1].tolist()
