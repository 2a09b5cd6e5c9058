"""Tokenisation bias: what a token forbids to come next, because a longer token would have spelt it.

After the token "th" a model practically never says "e": the tokenizer would have written "the". So the likelihood of a
text that ends in "th" is not that of the text with anything after it, and likelihoods of two models whose last tokens
forbid different things cannot be compared. The share of the ways to go on that only one of two last tokens forbids is
what is called their bias here; it is estimated from how often tokens are seen.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from limbeck.data.tensors import Split

ROWS = 1024
"""Training rows that are counted."""


class _Vocabulary:
    """Tokens by what they spell, in order, with how often each is seen."""

    def __init__(self, pieces: Sequence[bytes], counts: Int64[Tensor, "tokens"]):
        seen: dict[bytes, int] = {}
        for piece, count in zip(pieces, counts.tolist()):
            if piece:
                seen[piece] = seen.get(piece, 0) + count
        self.seen, self.pieces = seen, pieces
        self.ordered = sorted(piece for piece, count in seen.items() if count)
        self.longest = max(map(len, seen), default=0)

    def ways_on(self, piece: bytes) -> list[tuple[bytes, int]]:
        """What a token forbids: the rest of every longer token that begins with it, and how often that is seen."""
        at, found = bisect_left(self.ordered, piece), []
        while at < len(self.ordered) and self.ordered[at].startswith(piece):
            longer = self.ordered[at]
            if longer != piece:
                found.append((longer[len(piece) :], self.seen[longer]))
            at += 1
        return found

    def forbids(self, piece: bytes, rest: bytes) -> bool:
        """Whether a token cannot be followed by `rest`, since it would have swallowed its beginning."""
        most = min(len(rest), self.longest - len(piece))
        return any(piece + rest[:length] in self.seen for length in range(1, most + 1))


class Biases:
    """The bias of pairs of tokens that end at the same byte: the teacher's and the student's.

    For a token a: sum of count(a') over the tokens a' = a + r such that b does not forbid r, divided by count(a) + the
    sum of all count(a'); likewise for b; the greater of the two. In [0, 1]: 0 where both forbid the same, so always for one
    vocabulary; for a vocabulary of bytes, which forbids nothing, how often the other's token would have become longer.
    """

    def __init__(
        self,
        teacher: Sequence[bytes],
        teacher_counts: Int64[Tensor, "tokens"],
        student: Sequence[bytes],
        student_counts: Int64[Tensor, "tokens"],
    ):
        self.sides = _Vocabulary(teacher, teacher_counts), _Vocabulary(student, student_counts)
        self.known: dict[tuple[int, int], float] = {}

    def of(self, pairs: Int64[Tensor, "pairs 2"]) -> Float[Tensor, "pairs"]:
        """The bias of each pair (teacher's token, student's token)."""
        distinct, where = pairs.unique(dim=0, return_inverse=True)
        values = [self._of(a, b) for a, b in distinct.tolist()]
        return torch.tensor(values, dtype=torch.float32, device=pairs.device)[where]

    def _of(self, a: int, b: int) -> float:
        if (a, b) not in self.known:
            theirs, ours = self.sides
            pieces = theirs.pieces[a], ours.pieces[b]
            self.known[a, b] = max(
                _one_way(theirs, pieces[0], ours, pieces[1]), _one_way(ours, pieces[1], theirs, pieces[0])
            )
        return self.known[a, b]


def _one_way(mine: _Vocabulary, piece: bytes, other: _Vocabulary, theirs: bytes) -> float:
    ways = mine.ways_on(piece)
    only_here = sum(count for rest, count in ways if not other.forbids(theirs, rest))
    return only_here / max(mine.seen.get(piece, 0) + sum(count for _, count in ways), 1)


def counts_of(split: Split, student: int, teacher: int) -> tuple[Int64[Tensor, "tokens"], Int64[Tensor, "others"]]:
    """How often each of the student's and of the teacher's tokens is a target in the first rows of a split."""
    rows = split.__getitems__(list(range(min(len(split), ROWS))))
    found = []
    for column, size in (("target", student), ("teacher_target" if "teacher_target" in rows else "target", teacher)):
        target = rows[column]
        found.append(target[target >= 0].bincount(minlength=size))
    return found[0], found[1]
