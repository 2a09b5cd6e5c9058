"""Two tokenizers on one text: which tokens of the one spell the same bytes as which of the other.

A chunk of bytes closes wherever both tokenisations reach the same byte, so chunks are as short as they can be, none
spells different bytes on the two sides, and together they are the text. The walk is that of GOLD and ALM; here it is
an intersection of two sorted lists.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

Ends = Int64[np.ndarray, "tokens"]
Group = Int64[np.ndarray, "tokens"]


def groups(ends_a: Ends, ends_b: Ends) -> tuple[Group, Group]:
    """The number of the chunk that each token belongs to, on both sides; -1: none.

    Args:
        ends_a: the offset in bytes at which each token ends, never falling; -1 for tokens that stand for no text. Both
            sides count from the same place in the same bytes (`limbeck.language.pieces.spans`).
        ends_b: the same of the other tokenisation.

    Chunks are numbered from 0 in the order of the text. Tokens with one end (of one character, say) stay together. What
    comes after the last byte that both reach has no partner. Every number there is stands on both sides.
    """
    a, b = (ends[ends > 0] for ends in (ends_a, ends_b))
    a, b = (ends[np.diff(ends, prepend=0) > 0] for ends in (a, b))
    shared = a[b[np.searchsorted(b, a).clip(max=len(b) - 1)] == a] if len(b) else b
    return _numbered(ends_a, shared), _numbered(ends_b, shared)


def _numbered(ends: Ends, shared: Ends) -> Group:
    number = np.searchsorted(shared, ends, side="left")
    return np.where((ends >= 0) & (number < len(shared)), number, -1).astype(np.int64)


@dataclass(frozen=True)
class Tokenised:
    """One side's tokens of a sample, and the parts of its text that the model writes.

    Attributes:
        text: what was tokenised: the prompt with its completion, or the chat as the side's template writes it.
        answers: where the parts that count stand in `text`, (begin, end) in characters, in order.
        ends: where in `text.encode()` each token ends (`limbeck.language.pieces.spans`); -1: stands for none of it.
        counted: the tokens that the model has to predict.
        final: special tokens, which stand for no text of an answer: the end of an answer above all.
    """

    text: str
    answers: Sequence[tuple[int, int]]
    ends: Ends
    counted: Bool[np.ndarray, "tokens"]
    final: Bool[np.ndarray, "tokens"]


def of_answers(ours: Tokenised, theirs: Tokenised) -> tuple[Group, Group]:
    """Chunks of the answers of one sample as two tokenizers, perhaps with two chat templates, have it.

    The first answer of the one side is compared with the first of the other, and so on. Compared are the bytes that both
    have in common from an answer's beginning (after white space, or words of a template, that only one of them has).
    Tokens that do not count are in no chunk. The end tokens of both sides are a chunk of their own if all text of the
    answer before them is in chunks: that it ends here is the same event, whatever it is called.
    """
    found = np.full(len(ours.ends), -1, np.int64), np.full(len(theirs.ends), -1, np.int64)
    chunks = 0
    for mine, other in zip(ours.answers, theirs.answers):
        skip_a, skip_b, length = _meeting(ours.text[slice(*mine)], theirs.text[slice(*other)])
        common = len(ours.text[mine[0] + skip_a : mine[0] + skip_a + length].encode())
        a, b = _inside(ours, mine, skip_a, common), _inside(theirs, other, skip_b, common)
        numbers = groups(a.ends, b.ends)
        if not (a.begins and b.begins):  # the first chunk holds more on one side than on the other
            numbers = tuple(np.where(n > 0, n - 1, -1) for n in numbers)  # type: ignore[assignment]
        closes = [part.final_after(n) for part, n in zip((a, b), numbers, strict=True)]
        for all_, part, n, end in zip(found, (a, b), numbers, closes, strict=True):
            all_[part.at] = np.where(n >= 0, n + chunks, -1)
            if None not in closes:
                all_[end] = chunks + n.max() + 1
        chunks = max(chunks, int(found[0].max()) + 1)
    return found


@dataclass(frozen=True)
class _Part:
    """The tokens of one answer: where they are, where they end from its beginning on, and whether one begins just there."""

    at: Int64[np.ndarray, "tokens"]
    ends: Ends
    begins: bool
    side: Tokenised

    def final_after(self, group: Group) -> int | None:
        """The place of the end token, if the answer's last text token is in a chunk and it comes right after that."""
        if not len(self.at) or group[-1] < 0:
            return None
        after = int(self.at[-1]) + 1
        return after if after < len(self.side.ends) and self.side.final[after] and self.side.counted[after] else None


def _inside(side: Tokenised, answer: tuple[int, int], skip: int, common: int) -> _Part:
    begin = len(side.text[: answer[0]].encode())
    stop = begin + len(side.text[slice(*answer)].encode())
    first = begin + len(side.text[answer[0] : answer[0] + skip].encode())
    mine = side.counted & ~side.final & (side.ends >= begin) & (side.ends <= stop)
    at = np.flatnonzero(mine)
    ends = side.ends[at] - first
    if skip:
        at, ends = at[ends > 0], ends[ends > 0]
    begins = skip == 0 or bool((side.ends[mine] == first).any())
    return _Part(at, np.where(ends <= common, ends, -1), begins, side)


def _meeting(a: str, b: str) -> tuple[int, int, int]:
    """Where two answers begin to be the same, in characters of each, and for how many characters."""
    if a == b:
        return 0, 0, len(a)
    tries = [(0, 0), (len(a) - len(a.lstrip()), len(b) - len(b.lstrip()))]
    best = max(((i, j, _common(a[i:], b[j:])) for i, j in tries), key=lambda found: found[2])
    if 2 * best[2] >= min(len(a.strip()), len(b.strip())):
        return best
    match = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return (match.a, match.b, match.size) if match.size > best[2] else best


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How long the common beginning is."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def within(
    group_a: Group, group_b: Group, kept_a: Bool[np.ndarray, "tokens"], kept_b: Bool[np.ndarray, "tokens"]
) -> tuple[Group, Group]:
    """The chunks of which both sides keep every token, numbered anew from 0: after texts were cut to a length."""
    broken = np.union1d(group_a[~kept_a], group_b[~kept_b])
    whole = np.setdiff1d(np.intersect1d(group_a[kept_a], group_b[kept_b]), broken)
    whole = whole[whole >= 0]
    numbered = []
    for group, kept in ((group_a, kept_a), (group_b, kept_b)):
        here = group[kept]
        numbered.append(np.where(np.isin(here, whole), np.searchsorted(whole, here), -1).astype(np.int64))
    return numbered[0], numbered[1]


def exact(pieces_a: Sequence[bytes], pieces_b: Sequence[bytes], also: Mapping[int, int] | None = None) -> Group:
    """For each token of the one vocabulary the token of the other that spells the same bytes, -1 where there is none.

    The tokens of SentencePiece's byte fallback come after letters that spell the same: of several tokens of b with the
    same bytes the last one is meant. `also`: further pairs, say the end tokens {eos_a: eos_b}, which spell nothing.
    """
    number = {piece: i for i, piece in enumerate(pieces_b) if piece}
    found = np.array([number.get(piece, -1) if piece else -1 for piece in pieces_a], dtype=np.int64)
    for a, b in (also or {}).items():
        found[a] = b
    return found


def nearest(pieces_a: Sequence[bytes], pieces_b: Sequence[bytes], also: Mapping[int, int] | None = None) -> Group:
    """For each token of a the token of b with the fewest insertions, deletions and exchanges of bytes away (MinED).

    Exact matches first; then all tokens one edit away; then, of the tokens that share its longest beginning or its longest
    end (`_NEIGHBOURS` on each side in sorted order), the one with the smallest edit distance. So a distance of 0 or 1 is
    always the smallest there is, a greater one is the smallest among neighbours. Ties: the least difference in length, then
    the smaller id. Special tokens are mapped by `also` alone; -1 where b has no token at all. Kept for the last few pairs
    of vocabularies asked for. Source of the idea: minimum edit distance in FuseLLM (Wan et al. 2024); the blocking is ours.
    """
    pairs = tuple(sorted((also or {}).items()))
    return _nearest(tuple(pieces_a), tuple(pieces_b), pairs).copy()


_NEIGHBOURS = 6


@lru_cache(maxsize=8)
def _nearest(pieces_a: tuple[bytes, ...], pieces_b: tuple[bytes, ...], also: tuple[tuple[int, int], ...]) -> Group:
    found = exact(pieces_a, pieces_b, dict(also))
    number = {piece: i for i, piece in enumerate(pieces_b) if piece}
    if not number:
        return found
    shorter: dict[bytes, list[bytes]] = {}
    for piece in number:
        for less in _less_one(piece):
            shorter.setdefault(less, []).append(piece)
    forwards, backwards = sorted(number), sorted(piece[::-1] for piece in number)
    mapped = dict(also)
    for at in np.flatnonzero(found < 0):
        piece = pieces_a[at]
        if not piece or int(at) in mapped:
            continue
        close = set(shorter.get(piece, ()))
        for less in _less_one(piece):
            close |= {less} & number.keys()
            close |= {other for other in shorter.get(less, ()) if len(other) == len(piece)}
        best = _best(piece, close, number)
        if best is None or best[0] > 1:  # the same letter left out of two places is up to two edits away
            close |= set(_around(forwards, piece)) | {other[::-1] for other in _around(backwards, piece[::-1])}
            best = _best(piece, close, number)
        assert best is not None
        found[at] = best[2]
    return found


def _best(piece: bytes, others: set[bytes], number: Mapping[bytes, int]) -> tuple[int, int, int] | None:
    best: tuple[int, int, int] | None = None
    for other in others:
        apart = abs(len(other) - len(piece))
        if best is None or apart <= best[0]:
            candidate = (edits(piece, other), apart, number[other])
            best = candidate if best is None else min(best, candidate)
    return best


def _less_one(piece: bytes) -> Iterator[bytes]:
    return (piece[:at] + piece[at + 1 :] for at in range(len(piece)))


def _around(ordered: list[bytes], piece: bytes) -> list[bytes]:
    at = bisect_left(ordered, piece)
    return ordered[max(at - _NEIGHBOURS, 0) : at + _NEIGHBOURS]


def edits(a: bytes, b: bytes) -> int:
    """The fewest insertions, deletions and exchanges of single bytes that make b of a (Levenshtein's distance)."""
    begin = _common(a, b)
    a, b = a[begin:], b[begin:]
    end = _common(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    if not a or not b:
        return len(a) + len(b)
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]
