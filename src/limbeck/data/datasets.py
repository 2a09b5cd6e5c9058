"""Rows from Python: any map-style torch Dataset of dicts, a Hugging Face data set, several sources by split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limbeck.data.column import CellError, Column
from limbeck.data.columns import Label
from limbeck.data.splits import standard
from limbeck.data.table import Part, Table
from limbeck.errors import RecipeError, nearest


@dataclass
class Items:
    """A Dataset whose items are checked to be rows."""

    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        item = self.items[index]
        if not isinstance(item, Mapping):
            raise CellError(f"is a {type(item).__name__}, not a dict of columns")
        return item


def is_dataset(source: Any) -> bool:
    """Whether it has rows by number, or is a torch Dataset, of which `dataset` says why it cannot be used."""
    from torch.utils.data import Dataset

    rows = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return isinstance(source, Dataset) or (rows and not isinstance(source, (str, Mapping, Path)))


def dataset(source: Any, *, split: str = "split", id: str | None = None) -> Table:
    """The rows of a Dataset (torch, Hugging Face, or a list of dicts), read when asked for.

    Its items are dicts from column name to tensor, array, picture, text or number. They are read once for the check
    and again in training, so a Dataset may augment; it need not have `__getitems__`.

    Args:
        split, id: columns of the items, as in a manifest.

    Raises:
        RecipeError: it has no length or no rows, its first item is not to be had or not a dict, or a column asked for is not there.
    """
    name = type(source).__name__
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise RecipeError(f"{name} has no length, or no items by number; needed is a map-style Dataset.")
    if len(source) == 0:
        raise RecipeError(f"The {name} has no rows.")
    try:
        first = source[0]
    except Exception as error:  # the user's own code may raise anything
        raise RecipeError(f"The first row of {name} cannot be read ({type(error).__name__}: {error}).") from error
    if not isinstance(first, Mapping):
        raise RecipeError(
            f"The items of {name} are of type {type(first).__name__}; needed are dicts that name what they hold, "
            'for example {"image": image, "label": label}.'
        )
    for option, column in {"id": id, "split": split if split != "split" else None}.items():
        if column is not None and column not in first:
            raise RecipeError(f"The items of {name} have no '{column}', given as {option}. {nearest(column, first)}")
    id = id or ("id" if "id" in first else None)
    held = split if split in first else None
    columns = [column for column in first if column not in (id, held)]
    features = getattr(source, "features", None) or {}
    known: dict[str, Column] = {
        column: Label(names=tuple(features[column].names))
        for column in columns
        if column in features and getattr(features[column], "names", None)
    }
    # A list holds the same rows each time, so they may be kept; what a Dataset computes may differ.
    return Table(
        name,
        [Part(Items(source), id=id, split=held, own_ids=id is not None)],
        columns,
        known,
        live=not isinstance(source, list),
    )


def by_split(tables: Mapping[str, Table]) -> Table:
    """Several sources, each a split of its own, as one table; what they say of splits themselves does not count.

    Ids that are counted, or are paths, get the split before them; ids that the data give stay, and must be unique.

    Raises:
        RecipeError: two names for one split, such as `val` and `dev`.
    """
    parts: list[Part] = []
    names: dict[str, None] = {}
    known: dict[str, Column] = {}
    for word, table in tables.items():
        split = standard(word)
        if any(part.said == split for part in parts):
            raise RecipeError(f"Two of {', '.join(tables)} mean the split '{split}'.")
        for part in table.parts:
            prefix = "" if part.own_ids else f"{split}/"
            parts.append(replace(part, split=None, said=split, prefix=prefix))
        names |= dict.fromkeys(table.names)
        known |= table.known
    source = ", ".join(f"{word}: {table.source}" for word, table in tables.items())
    notices = [notice for table in tables.values() for notice in table.notices]
    return Table(source, parts, list(names), known, notices, any(table.live for table in tables.values()))


def hub(name: str, args: Mapping[str, Any]) -> Any:
    """A data set from the Hugging Face hub (or its cache): `datasets.load_dataset(name, **args)`.

    Raises:
        RecipeError: the package is missing, or gives no such data set.
    """
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"data '{name}': there is no such path here ({Path.cwd()}). "
            "If it is a data set of the Hugging Face hub: pip install 'limbeck[data]'."
        ) from error
    try:
        return load_dataset(name, **args)
    except Exception as error:  # the hub client raises many types; all mean that there is no such data set to be had
        raise RecipeError(
            f"data '{name}': there is no such path here ({Path.cwd()}), and the Hugging Face hub did not give it "
            f"({type(error).__name__}: {error})."
        ) from error
