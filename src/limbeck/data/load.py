"""`load_data`: data from whatever a user names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.data.build import build
from limbeck.data.collate import listed
from limbeck.data.datasets import by_split, dataset, hub, is_dataset
from limbeck.data.folders import folder
from limbeck.data.manifest import SUFFIXES, is_manifest, manifest, stem
from limbeck.data.plain_text import SUFFIX, is_text, plain_text
from limbeck.data.scan import Progress
from limbeck.data.splits import SPLITS, is_split, standard
from limbeck.data.table import Table
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError, nearest
from limbeck.sources import import_from


def load_data(
    source: Any,
    *,
    columns: Mapping[str, Any] | None = None,
    split: str = "split",
    id: str | None = None,
    args: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    budget: int = 2**30,
    progress: Progress | None = None,
    only: str | None = None,
) -> Data:
    """Data from a path, a name, a Dataset, or several of them by split; all of it is read and checked here.

    Args:
        source: in this order: `Data` (given back); `{split: source}`; a map-style Dataset of dicts; a path that exists
            (a CSV, JSONL or Parquet manifest, or a folder, see `folders`); `module:function`, called with `args`, the
            current folder counting; a built-in name such as `av-digits`; a data set of the Hugging Face hub.
        columns: column -> `Image(size=28)`, `image`, `{use: image, size: 28}`, options alone for a guessed kind, or
            None to leave it out. Columns that are not named are guessed, and `Data.notices` says how.
        split: the column that says the split. Without one, 80/10/10 by a hash of the id; a validation or test split
            that the data do not name is 10 % of their train rows.
        id: the column with stable ids; None takes a column called `id`, else row numbers (in folders: paths).
        args: arguments of the function, or of `datasets.load_dataset`.
        skip_bad: leave out bad rows, and say how many, instead of refusing.
        seed: of the hash that makes splits. It is not the run's seed: two runs should share their test split.
        budget: bytes of decoded values kept in memory; what is beyond is decoded for each batch.
        progress: called as `progress(rows read, rows in all)`.
        only: the one split that is wanted of files, so that no other need be there; rows of which nothing is said
            belong to it.

    Raises:
        RecipeError: there is no such source (the nearest name is given), or its data are wrong: one error that lists
            the first 20 problems and counts all.
    """
    source, args = _called(source, args)
    if isinstance(source, Data):
        if columns or id or split != "split":
            raise RecipeError(f"{source.source or 'Data'} is decoded already: columns, split and id are for files.")
        return source
    if args:
        raise RecipeError(f"data.args are for functions (module:function) and hub data sets; {source} takes none.")
    table = _table(source, columns, split, id, whole=only is not None)
    return build(table, columns, skip_bad=skip_bad, seed=seed, budget=budget, progress=progress, only=only)


def _called(source: Any, args: Mapping[str, Any] | None) -> tuple[Any, Mapping[str, Any] | None]:
    """What a name stands for, and the arguments that are still to be used; paths and objects are given back."""
    if not isinstance(source, str) or Path(source).expanduser().exists():
        return source, args
    from limbeck.data.built_in import BUILT_IN

    address = BUILT_IN.get(source, source)
    if ":" in address:
        function = import_from(address, "data")
        if not callable(function):
            return function, args
        try:
            inspect.signature(function).bind(**(args or {}))
        except TypeError as error:
            raise RecipeError(f"data.args do not fit {address}{inspect.signature(function)}: {error}.") from error
        return function(**(args or {})), None
    if Path(source).suffix or source.startswith((".", "/", "~")):
        path = Path(source).expanduser()
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RecipeError(f"There is no {path} (looked for from {Path.cwd()}).{_close(path.name, beside)}")
    try:
        return hub(source, args or {}), None
    except RecipeError as error:
        here = [*BUILT_IN, *(one.name for one in Path.cwd().iterdir())]
        raise RecipeError(f"{error}{_close(source, here)}") from error


def _close(word: str, known: list[str]) -> str:
    close = nearest(word, known)
    return f" {close}" if close.startswith("Did") else ""


def _table(source: Any, columns: Mapping[str, Any] | None, split: str, id: str | None, *, whole: bool) -> Table:
    """The rows of a source; `whole`: which split they are is said already."""
    if isinstance(source, Mapping):
        if not source:
            raise RecipeError("data is an empty mapping; write {train: path, test: path}.")
        return by_split(
            {name: _table(_called(one, None)[0], columns, split, id, whole=True) for name, one in source.items()}
        )
    if isinstance(source, (str, Path)):
        return _path(Path(source).expanduser(), columns, split, id, whole)
    if is_dataset(source):
        return dataset(source, split=split, id=id)
    raise RecipeError(
        f"data is of type {type(source).__name__}; needed is a path, module:function, a Dataset of dicts, "
        "or {split: one of them}."
    )


def _path(path: Path, columns: Mapping[str, Any] | None, split: str, id: str | None, whole: bool) -> Table:
    if not path.exists():
        raise RecipeError(f"There is no {path} (looked for from {Path.cwd()}).")
    if path.is_file():
        if is_text(path):
            return plain_text(path, whole=whole)
        if not is_manifest(path):
            raise RecipeError(f"{path} is no manifest; its name would end in {', '.join([*SUFFIXES, SUFFIX])}.")
        return manifest(path, split=split, id=id)
    found = sorted(one for one in path.iterdir() if one.is_file() and is_manifest(one))
    parts = {stem(one): one for one in found if is_split(stem(one))}
    called = [one for one in found if stem(one) in ("manifest", "metadata")] or ([] if parts else found)
    if len(called) == 1:
        return manifest(called[0], split=split, id=id)
    if parts:
        order = sorted(parts, key=lambda name: SPLITS.index(standard(name)))
        table = by_split({name: manifest(parts[name], split=split, id=id) for name in order})
        return replace(table, source=str(path))
    if called:
        raise RecipeError(
            f"{path} holds several manifests: {listed([one.name for one in called])}. Name one of them, or say which is "
            "which: {train: path, test: path}."
        )
    texts = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    if texts and all(is_text(one) and is_split(one.stem) for one in texts):
        texts.sort(key=lambda one: SPLITS.index(standard(one.stem)))
        return replace(by_split({one.stem: plain_text(one, whole=True) for one in texts}), source=str(path))
    return folder(path, columns)
