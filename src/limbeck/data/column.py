"""What every kind of column has: options that are checked, and a way from a cell to a value."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from limbeck.errors import RecipeError, nearest


class CellError(ValueError):
    """A cell that cannot be used; the message is a clause whose subject is the column: `is empty`."""


class Column(BaseModel):
    """One column of the data; its options are checked when it is made.

    Raises:
        RecipeError: an unknown option (the nearest is named), or a value that the option cannot take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    use: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    evens: ClassVar[str] = ""  # the option that gives all rows one shape

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise RecipeError(" ".join(dict.fromkeys(self._sentence(fault) for fault in error.errors()))) from None

    @classmethod
    def _sentence(cls, fault: Any) -> str:
        option = str(fault["loc"][0])
        if option not in cls.model_fields:
            return f"unknown key '{option}' of column '{cls.use}'. {nearest(option, cls.model_fields)}"
        return f"column '{cls.use}': {option}: {cls.model_fields[option].description}, given was {fault['input']!r}."

    def locate(self, cell: Any, folder: Path) -> Any:
        """The cell with a path in it made absolute (`folder` is where the manifest lies); other cells as they are."""
        return folder / cell if self.suffixes and isinstance(cell, str) and cell else cell

    def decode(self, cell: Any) -> Any:
        """The value of a cell.

        Raises:
            CellError: the cell cannot be used. What libraries raise on a broken file is let through.
        """
        raise NotImplementedError

    def read(self, cells: Mapping[str, Any], name: str, folder: Path) -> Any:
        """The value of this column, called `name`, in a row of cells.

        Raises:
            CellError: the row has no such cell, or `decode` refuses it.
        """
        if name not in cells:
            raise CellError("is missing in this row")
        return self.decode(self.locate(cells[name], folder))

    def spec(self) -> dict[str, Any]:
        """The column as a recipe spells it, with every default written out."""
        return {"use": self.use, **self.model_dump(mode="json")}

    def describe(self) -> str:
        """The column in a few words: `image, size 28`."""
        given = {name: getattr(self, name) for name in self.model_fields_set if name != "names"}
        return ", ".join([self.use, *(f"{name} {value}" for name, value in sorted(given.items()))])


def present(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        CellError: it is not.
    """
    if not path.is_file():
        raise CellError(f"{path.name} is not there ({path.parent})")
    return path


def opened(cell: Any) -> Path | io.BytesIO:
    """The file behind a path, bytes, or a `{"bytes": ..., "path": ...}` cell as Parquet files hold it.

    Raises:
        CellError: the cell is empty or no such thing, or the file is not there.
    """
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"])
    if isinstance(cell, Path):
        return present(cell)
    if isinstance(cell, (bytes, bytearray)):
        return io.BytesIO(cell)
    raise CellError("is empty" if cell in (None, "") else f"holds a {type(cell).__name__}, not a file")


def reason(error: Exception) -> str:
    """Why a cell could not be read, as a clause whose subject is the column."""
    return str(error) if isinstance(error, CellError) else f"cannot be read ({type(error).__name__}: {error})"
