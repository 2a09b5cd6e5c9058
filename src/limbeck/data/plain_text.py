"""A text file as data: one long text, or one per split."""

from __future__ import annotations

from pathlib import Path

from limbeck.data.columns import Text
from limbeck.data.splits import SHARES
from limbeck.data.table import Part, Table
from limbeck.errors import RecipeError

SUFFIX = ".txt"
LONG = (
    2**20
)  # characters; a longer text becomes several rows, so that no row is larger than what is made of it in memory


def is_text(path: Path) -> bool:
    """Whether the file's name is that of a plain text."""
    return path.suffix.lower() == SUFFIX


def plain_text(path: Path, *, whole: bool) -> Table:
    """A UTF-8 text file, in the column `text`.

    A text has an order, so splits are parts of it and not lines drawn at random: the first 80 % train, the next 10 %
    validate, the last 10 % test, each up to the end of a line. What is longer than `LONG` characters is cut into rows, at
    line ends too.

    Args:
        whole: all of it is one row, and which split it is, is said elsewhere.

    Raises:
        RecipeError: it is no UTF-8, is empty, or has too few lines to be parted.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The text {path} cannot be read as UTF-8: {error}.") from error
    if not text.strip():
        raise RecipeError(f"The text {path} is empty.")
    if whole:
        rows = _rows(text, path.name)
        return Table(str(path), [Part(rows, path.parent, "id")], ["text"], {"text": Text()})
    ends = {"train": SHARES["validation"][0], "validation": SHARES["validation"][1], "test": 1.0}
    rows, start = [], 0
    for split, share in ends.items():
        line = text.find("\n", int(share * len(text)) - 1) + 1
        end = line if line and share < 1 else len(text)
        if not text[start:end].strip():
            raise RecipeError(
                f"The text {path} has too few lines to be parted into train, validation and test. Give a file for each: "
                "{train: path, validation: path, test: path}."
            )
        rows += [{**row, "split": split} for row in _rows(text[start:end], f"{path.name}/{split}")]
        start = end
    notice = (
        f"{path.name} is one text: its first 80 % train, the next 10 % validate, the last 10 % test (to line ends)."
    )
    return Table(str(path), [Part(rows, path.parent, "id", "split")], ["text"], {"text": Text()}, [notice])


def _rows(text: str, name: str) -> list[dict[str, str]]:
    """The text in rows of at most `LONG` characters."""
    rows: list[dict[str, str]] = []
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > LONG:
            end = text.rfind("\n", start, start + LONG) + 1 or start + LONG
        rows.append({"text": text[start:end], "id": f"{name}#{len(rows) + 1}" if rows else name})
        start = end
    return rows
