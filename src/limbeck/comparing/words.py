"""Several values in one word: `method=kd,rkd`, `seed=0..4`, `seed,teacher=[0, runs/a],[1, runs/b]`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError
from limbeck.recipe import text

_SETTING = re.compile(r"([A-Za-z_][\w.,-]*)=(.*)", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")
_RANGE = re.compile(r"\s*(\d+)\.\.(\d+)\s*")


def is_setting(word: Any) -> bool:
    """Whether a word is `key=...` and no file."""
    return isinstance(word, str) and _SETTING.fullmatch(word) is not None and not Path(word).exists()


def settings(words: Iterable[str]) -> dict[str, list[Any]]:
    """Each key with its values, read by the rules of the recipe file.

    Raises:
        RecipeError: a key stands twice, a value is no YAML, or there is nothing beside a comma.
    """
    found: dict[str, list[Any]] = {}
    for word in words:
        match = _SETTING.fullmatch(word)
        if match is None:
            raise RecipeError(f"'{word}' is no setting. Write key=value, or key=a,b,c for several values.")
        if match[1] in found:
            raise RecipeError(f"'{match[1]}' stands twice. Give all its values in one word: {match[1]}=a,b,c")
        found[match[1]] = values(match[2], word)
    return found


def values(typed: str, word: str = "") -> list[Any]:
    """What stands between the commas outside brackets and quotes; `0..4` is 0, 1, 2, 3, 4."""
    found: list[Any] = []
    for part in _parts(typed):
        if not part.strip() and typed.strip():
            raise RecipeError(f"'{word or typed}': nothing stands on one side of a comma.")
        counted = _RANGE.fullmatch(part)
        if counted is None:
            found.append(text.read(part, word or part))
            continue
        first, last = int(counted[1]), int(counted[2])
        if last < first:
            raise RecipeError(f"'{word or typed}': {first}..{last} counts down; write {last}..{first}")
        found += range(first, last + 1)
    return found


def _parts(typed: str) -> Iterator[str]:
    """Split at commas outside brackets and quotes. As in YAML, a quote opens only where a value begins."""
    depth, place, start, begins = 0, 0, 0, True
    while place < len(typed):
        quoted = _QUOTED.match(typed, place) if begins else None
        sign = typed[place]
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            yield typed[start:place]
            start = place + 1
        begins = quoted is None and (sign in ",[{:" or (begins and sign.isspace()))
        place = quoted.end() if quoted else place + 1
    yield typed[start:]
