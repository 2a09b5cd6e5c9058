"""Where two recipes differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.recipe import text

_FROM_THE_DATA = ("task", "view")  # may be left open in a recipe, and is filled in when the data are seen


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Sentences such as `train.lr is 0.001 here and 0.01 there`, in the order of the file; the version does not count."""
    return [
        f"{key} is {text.phrase(one)} here and {text.phrase(other)} there"
        for key, one, other in _apart(here, there, "")
    ]


def _apart(here: Any, there: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    if (
        isinstance(here, Mapping)
        and isinstance(there, Mapping)
        and (at == "task" or here.get("use") == there.get("use"))
    ):
        for key in dict.fromkeys([*here, *there]):
            if at or key != "limbeck":
                yield from _apart(here.get(key), there.get(key), f"{at}.{key}" if at else str(key))
    elif _named(here) and _named(there) and [_name(e) for e in here] == [_name(e) for e in there]:
        for one, other in zip(here, there):
            yield from _apart(one, other, f"{at}.{_name(one)}")
    elif here != there and not (None in (here, there) and _open(at)):
        yield at, here, there


def _open(at: str) -> bool:
    parts = at.split(".")
    return parts[0] in _FROM_THE_DATA or parts[-1] in _FROM_THE_DATA


def _named(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name", entry.get("use")))
