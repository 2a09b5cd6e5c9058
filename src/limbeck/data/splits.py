"""Which split a row belongs to: as the data say, else by a hash of its id."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from limbeck.errors import nearest

SPLITS = ("train", "validation", "test")
SHARES = {"validation": (0.8, 0.9), "test": (0.9, 1.0)}
OTHER_WORDS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}


def standard(word: str) -> str:
    """A split's name in one spelling: `val`, `valid` and `dev` are `validation`."""
    word = str(word).strip().lower()
    return OTHER_WORDS.get(word, word)


def is_split(word: str) -> bool:
    """Whether the word is a usual name of one of the three splits."""
    return standard(word) in SPLITS


def place(id: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on id and seed alone: sha256 of both, as a fraction of 2^64.

    So a row stays in its split when other rows come, go or change places.
    """
    digest = hashlib.sha256(f"{seed}/{id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(ids: Sequence[str], said: Sequence[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """A split for every row, and a sentence about each that was made here.

    Rows of `train`, and rows of which nothing is said (""), make up the splits that nobody named: a hash in [0.8, 0.9)
    goes to `validation`, in [0.9, 1) to `test`. Where nothing is said of any row, this is 80/10/10.
    """
    named = set(filter(None, said))
    made = {name: share for name, share in SHARES.items() if name not in named}
    splits = [word or "train" for word in said]
    for row, (id, word) in enumerate(zip(ids, splits, strict=True)):
        if word == "train":
            where = place(id, seed)
            splits[row] = next((name for name, (low, high) in made.items() if low <= where < high), "train")
    notices = []
    if made and not named:
        notices.append("The data name no splits: 80 % train, 10 % validation, 10 % test by a hash of the id.")
    elif made and "train" in named:
        notices.append(
            f"The data have no {' and no '.join(made)} split: "
            f"{'each is' if len(made) > 1 else 'it is'} 10 % of the train rows, by a hash of the id."
        )
    return splits, notices + [_stray(name) for name in sorted(named.difference(SPLITS))]


def _stray(name: str) -> str:
    close = nearest(name, SPLITS)
    return f"The split '{name}' is used only where a recipe names it.{' ' + close if close.startswith('Did') else ''}"


def rows_of(splits: Iterable[str]) -> dict[str, list[int]]:
    """Split name -> positions of its rows, the three usual ones first (also when they are empty)."""
    found: dict[str, list[int]] = {name: [] for name in SPLITS}
    for row, name in enumerate(splits):
        found.setdefault(name, []).append(row)
    return found
