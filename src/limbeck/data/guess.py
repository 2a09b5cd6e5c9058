"""What the columns hold, where the user does not say: by file suffix and by content, and told in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.data.column import Column
from limbeck.data.columns import Array, Audio, Image, Label, Number, Text, of
from limbeck.data.table import Table
from limbeck.errors import RecipeError, nearest

LOOKED_AT = 200
LABEL_NAMES = {"label", "labels", "class", "category"}
NUMBERED_LABEL_NAMES = LABEL_NAMES | {"target", "y"}  # of whole numbers; with words they may as well be answers
TEXT_NAMES = {"messages", "prompt", "completion", "text"}  # what language tasks read, whatever it looks like
ROWS_PER_CLASS = 10  # what a text column of another name must repeat to be taken for classes


def resolve(table: Table, said: Mapping[str, Any] | None) -> tuple[dict[str, Column], list[str]]:
    """The columns of a table: as the user says, as the source knows, or guessed; and a sentence about the guesses.

    `said` maps a column to any spelling that `columns.of` takes, to options without `use` (for the guessed kind), or to
    None, which leaves the column out.

    Raises:
        RecipeError: a column that is not there, or one whose kind cannot be guessed.
    """
    said = dict(said or {})
    for name in said:
        if name not in table.names:
            raise RecipeError(f"{table.source} has no column '{name}'. {nearest(name, table.names)}")
    rows = table.first_rows(1 if table.live else LOOKED_AT)
    columns: dict[str, Column] = {}
    guessed, empty = [], []
    for name in table.names:
        choice = said.get(name, table.known.get(name))
        if name in said and choice is None:
            continue
        if choice is not None and not (isinstance(choice, Mapping) and "use" not in choice):
            columns[name] = of(choice)
            continue
        kind = table.known.get(name) or guess(name, [(row.get(name), folder) for row, folder in rows])
        if kind is None:
            empty.append(name)
            continue
        options = {option: getattr(kind, option) for option in kind.model_fields_set}
        columns[name] = of({"use": kind.use, **options, **(choice or {})})
        guessed.append(name)
    if not any(isinstance(column, Label) for column in columns.values()) and not {"messages", "completion"} & set(
        columns
    ):
        columns |= _classes([n for n in guessed if columns[n] == Text() and n not in TEXT_NAMES], rows)
    if not columns:
        raise RecipeError(f"{table.source} has no columns to learn from.")
    notices = [f"The column '{name}' is empty and was left out." for name in empty]
    if guessed:
        what = "; ".join(f"{name} as {columns[name].describe()}" for name in guessed)
        notices.append(f"Columns were guessed from the first {len(rows)} rows: {what}. Say data.columns to change it.")
    return columns, notices


def guess(name: str, cells: Sequence[tuple[Any, Path]]) -> Column | None:
    """The kind of a column from its name and some cells, each with the folder of its paths; None when all are empty."""
    filled = [(cell, folder) for cell, folder in cells if not _empty(cell)]
    if not filled:
        return None
    cell = filled[0][0]
    if isinstance(cell, Mapping) and "sampling_rate" in cell:
        return Audio(rate=int(cell["sampling_rate"]))
    if hasattr(cell, "convert") and hasattr(cell, "getbands"):  # a PIL image, asked without importing Pillow
        return Image()
    if isinstance(cell, (bytes, bytearray)) or (isinstance(cell, Mapping) and {"bytes", "path"} & cell.keys()):
        return _media(cell)
    if isinstance(cell, (Tensor, np.ndarray)) and cell.ndim > 0:
        return Array()
    if isinstance(cell, (str, Path)):
        kind = _words(name, filled)
        return kind if name not in TEXT_NAMES or isinstance(kind, Text) else Text()
    if name in TEXT_NAMES:
        return Text()
    if isinstance(cell, (list, tuple, dict)):
        return Array() if all(_regular(one) for one, _ in filled) else Text()
    floating = any(isinstance(one.item() if hasattr(one, "item") else one, float) for one, _ in filled)
    return Label() if name.lower() in NUMBERED_LABEL_NAMES and not floating else Number()


def _words(name: str, cells: Sequence[tuple[Any, Path]]) -> Column:
    words = [str(cell).strip() for cell, _ in cells]
    endings = {Path(word).suffix.lower() for word in words}
    for kind in (Image, Audio, Array):
        if endings <= set(kind.suffixes):
            return Audio(rate=_rate(cells)) if kind is Audio else kind()
    if endings <= set(Text.suffixes) and all((folder / word).is_file() for word, (_, folder) in zip(words, cells)):
        return Text(file=True)
    if all(word.startswith("[") and _regular_json(word) for word in words):
        return Array()
    numbers = [_number(word) for word in words]
    whole = all(word.lstrip("-").isdecimal() for word in words)
    if name.lower() in (NUMBERED_LABEL_NAMES if whole else LABEL_NAMES) and (whole or None in numbers):
        return Label()
    return Text() if None in numbers else Number()


def _classes(names: Sequence[str], rows: Sequence[tuple[Mapping[str, Any], Path]]) -> dict[str, Column]:
    """The one text column whose values repeat, as classes; nothing when there are several, or none."""
    repeating = []
    for name in names:
        words = [row[name] for row, _ in rows if isinstance(row.get(name), str)]
        if 2 <= len(set(words)) <= len(words) // ROWS_PER_CLASS:
            repeating.append(name)
    return {repeating[0]: Label()} if len(repeating) == 1 else {}


def _media(cell: Any) -> Column:
    """Image or audio, by the name of a file held as bytes, else by its first bytes."""
    name = cell.get("path") if isinstance(cell, Mapping) else None
    if name and Path(name).suffix.lower() in Audio.suffixes:
        return Audio()
    data = (cell.get("bytes") if isinstance(cell, Mapping) else cell) or b""
    sounds = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM")
    return Audio() if bytes(data[:4]).startswith(sounds) and data[8:12] != b"WEBP" else Image()


def _rate(cells: Sequence[tuple[Any, Path]]) -> int:
    """Samples per second of the first recording that opens; 16000 when none does (the check will tell)."""
    import soundfile

    for cell, folder in cells:
        with suppress(soundfile.LibsndfileError):
            return int(soundfile.info(folder / cell).samplerate)
    return 16000


def _empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, (str, float)) and Label.missing(cell))


def _regular(cell: Any) -> bool:
    """Whether nested lists are numbers in one shape; ragged ones stay lists."""
    try:
        return bool(np.asarray(cell).dtype.kind in "iubf")
    except ValueError:
        return False


def _regular_json(word: str) -> bool:
    try:
        return _regular(json.loads(word))
    except json.JSONDecodeError:
        return False


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
