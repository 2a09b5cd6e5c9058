"""How a cell of one's data becomes a tensor: `Image`, `Audio`, `Array`, `Text`, `Label`, `Number`.

A column decodes a cell once, for teacher and student alike; what only one of them needs belongs into its view. In a
recipe a column is spelled `{use: image, size: 28}`, or `image` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Num
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from limbeck.data import sound
from limbeck.data.column import CellError, Column, opened, present
from limbeck.errors import RecipeError, nearest


class Image(Column):
    """A picture as float32 `[channels, height, width]` in [0, 1], turned upright as its EXIF data say.

    Args:
        size: one number, or height and width, in pixels; None keeps each picture's own. Pillow's bilinear filter over
            the whole footprint of an output pixel, so making smaller does not alias.
        channels: 1 (luma), 3 or 4; None keeps 1 for grey pictures and 3 for all others (palettes are looked up).
        fit: `stretch` scales both sides on their own; `crop` keeps proportions and cuts what overhangs, evenly.

    Cells: a path, the bytes of a file, a PIL image, or a uint8 array `[height, width]` or `[height, width, channels]`.
    """

    use: ClassVar[str] = "image"
    evens: ClassVar[str] = "size (and channels)"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="needed is a number of pixels, or two: [height, width]"
    )
    channels: Literal[1, 3, 4] | None = Field(default=None, description="needed is 1, 3 or 4")
    fit: Literal["stretch", "crop"] = Field(default="stretch", description="needed is stretch or crop")

    def decode(self, cell: Any) -> Float[Tensor, "channels height width"]:
        from PIL import Image as Pil
        from PIL import ImageOps

        if isinstance(cell, np.ndarray):
            picture: Any = Pil.fromarray(cell)
        else:
            picture = cell if isinstance(cell, Pil.Image) else Pil.open(opened(cell))
        picture = ImageOps.exif_transpose(picture)
        deep = picture.mode.startswith("I;16")
        if picture.mode in ("I", "F"):
            raise CellError("holds 32-bit pixels, whose range nobody knows; save them as .npy and use: array")
        if deep:
            picture = Pil.fromarray(np.asarray(picture).astype(np.float32))
        grey = deep or picture.mode in ("1", "L", "LA")
        channels = self.channels or (1 if grey else 3)
        if not deep:
            picture = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        if self.size is not None:
            height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
            bilinear = Pil.Resampling.BILINEAR
            fitted = ImageOps.fit(picture, (width, height), bilinear) if self.fit == "crop" else None
            picture = fitted or picture.resize((width, height), bilinear)
        pixels = torch.from_numpy(np.array(picture, np.float32)) / (65535 if deep else 255)
        pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
        return pixels.expand(channels, -1, -1).contiguous() if deep else pixels


class Audio(Column):
    """A recording, mixed to one channel: float32 `[samples]` in [-1, 1], or log-mel power `[1, mels, frames]`.

    Args:
        rate: samples per second after resampling (a polyphase filter).
        seconds: cut or filled with silence at the end to this length; None keeps each recording's own.
        mels: number of mel bands; None gives the waveform. See `sound.log_mel`.
        window, hop: seconds per frame, seconds between frames.
        low: where the lowest mel band begins, in Hz; the highest ends at half the rate.

    Cells: a path, the bytes of a file, or `{"array": samples, "sampling_rate": rate}`.
    """

    use: ClassVar[str] = "audio"
    evens: ClassVar[str] = "seconds"
    suffixes: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
    rate: PositiveInt = Field(default=16000, description="needed is a number of samples per second")
    seconds: PositiveFloat | None = Field(default=None, description="needed is a length in seconds")
    mels: PositiveInt | None = Field(default=None, description="needed is a number of bands")
    window: PositiveFloat = Field(default=0.025, description="needed is a length in seconds")
    hop: PositiveFloat = Field(default=0.010, description="needed is a length in seconds")
    low: float = Field(default=0.0, ge=0, description="needed is a frequency in Hz")

    def decode(self, cell: Any) -> Float[Tensor, "..."]:
        if isinstance(cell, Mapping) and "array" in cell:
            samples, rate = np.asarray(cell["array"], np.float32), int(cell["sampling_rate"])
        else:
            samples, rate = sound.read(opened(cell))
        wave = sound.resample(sound.mono(samples), rate, self.rate)
        if self.seconds is not None:
            wave = sound.fit(wave, round(self.seconds * self.rate))
        if len(wave) == 0:
            raise CellError("holds no samples")
        if self.mels is None:
            return wave
        return sound.log_mel(wave, self.rate, self.mels, window=self.window, hop=self.hop, low=self.low)


class Array(Column):
    """Numbers of any shape: a `.npy` file, a list (in CSV as JSON text), an array or a tensor.

    Floats become float32 and whole numbers int64; a tensor stays as it is.

    Args:
        shape: the shape every row must have; a flat list of as many numbers is put into it.
    """

    use: ClassVar[str] = "array"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    shape: tuple[PositiveInt, ...] | None = Field(default=None, description="needed is a list of sizes")

    @field_validator("shape", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    def locate(self, cell: Any, folder: Path) -> Any:
        return cell if isinstance(cell, str) and cell.lstrip().startswith("[") else super().locate(cell, folder)

    def decode(self, cell: Any) -> Num[Tensor, "..."]:
        tensor = cell if isinstance(cell, Tensor) else self._numbers(cell)
        if self.shape is None or tuple(tensor.shape) == self.shape:
            return tensor
        if tensor.dim() == 1 and len(tensor) == int(np.prod(self.shape)):
            return tensor.reshape(self.shape)
        raise CellError(f"has shape {list(tensor.shape)}, not {list(self.shape)}")

    def _numbers(self, cell: Any) -> Num[Tensor, "..."]:
        if isinstance(cell, str):
            cell = json.loads(cell or "null")
        if cell is None:
            raise CellError("is empty")
        values = np.load(present(cell), allow_pickle=False) if isinstance(cell, Path) else np.asarray(cell)
        if values.dtype.kind in "iub":
            return torch.from_numpy(values.astype(np.int64))
        if values.dtype.kind != "f":
            raise CellError(f"holds {values.dtype}, not numbers")
        if not np.isfinite(values).all():
            raise CellError(f"holds {int((~np.isfinite(values)).sum())} values that are nan or infinite")
        return torch.from_numpy(values.astype(np.float32))


class Text(Column):
    """Text, kept as `str`; chats and other nested values of JSONL stay as they are.

    Args:
        file: the cell is the path of a UTF-8 text file.
    """

    use: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)
    file: bool = Field(default=False, description="needed is true or false")

    def locate(self, cell: Any, folder: Path) -> Any:
        return super().locate(cell, folder) if self.file else cell

    def decode(self, cell: Any) -> Any:
        if isinstance(cell, Path):
            return present(cell).read_text(encoding="utf-8")
        if cell is None:
            raise CellError("is empty")
        return cell if isinstance(cell, (str, list, dict)) else str(cell)


class Number(Column):
    """One number as float32, shape `[]`."""

    use: ClassVar[str] = "number"

    def decode(self, cell: Any) -> Float[Tensor, ""]:
        try:
            number = float(cell)
        except (TypeError, ValueError):
            raise CellError("is empty" if cell in (None, "") else f"is {cell!r}, not a number") from None
        if not np.isfinite(number):
            raise CellError(f"is {number}, not a finite number")
        return torch.tensor(number, dtype=torch.float32)


class Label(Column):
    """A class, as int64 `[]`: the place of its name in `names`.

    Args:
        names: the classes in order. None: numbers that begin with 0 are the classes themselves; anything else is
            sorted (numbers by value) and counted.

    Cells: a name, or the number of a class when no class has that name.
    """

    use: ClassVar[str] = "label"
    names: Sequence[str] | None = Field(default=None, description="needed is a list of different names")

    @field_validator("names", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if value is None or isinstance(value, str):
            return value
        names = tuple(cls.key(name) for name in value)
        if not names or len(set(names)) < len(names):
            raise ValueError("names repeat or are none")
        return names

    @staticmethod
    def key(cell: Any) -> str:
        """A cell as the name of a class: `3`, `3.0`, `np.int64(3)` and `"3"` are the same class."""
        cell = cell.item() if isinstance(cell, (Tensor, np.ndarray, np.generic)) else cell
        return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()

    @classmethod
    def missing(cls, cell: Any) -> bool:
        """Whether the cell names no class at all."""
        return cell is None or cls.key(cell) in ("", "nan")

    def fitted(self, cells: Iterable[Any]) -> Self:
        """The column with its names read off all cells (itself when names were given)."""
        if self.names is not None:
            return self
        keys = {self.key(cell) for cell in cells if not self.missing(cell)}
        if keys and all(_whole(key) for key in keys):
            numbers = sorted({int(key) for key in keys})
            # A far-away maximum is a code (a postcode), not a class number: empty classes would outnumber the real.
            counted = numbers[0] == 0 and numbers[-1] < 100 * len(numbers)
            return type(self)(names=tuple(map(str, range(numbers[-1] + 1) if counted else numbers)))
        return type(self)(names=tuple(sorted(keys)) or None)

    def decode(self, cell: Any) -> Tensor:
        return torch.tensor(self.index(cell), dtype=torch.int64)

    def index(self, cell: Any) -> int:
        """The class number of a cell.

        Raises:
            CellError: no class, an unknown name, or a number outside the classes.
        """
        names = self.names or ()
        if self.missing(cell):
            raise CellError("is empty")
        key = self.key(cell)
        if key in names:
            return names.index(key)
        if not _whole(key):
            raise CellError(f"is '{key}', an unknown class. {nearest(key, names)}".rstrip("."))
        if not 0 <= int(key) < len(names):
            raise CellError(f"is {key}, out of range: there are {len(names)} classes, 0 to {len(names) - 1}")
        return int(key)


def _whole(key: str) -> bool:
    return key.removeprefix("-").isdecimal() and str(int(key)) == key


KINDS: dict[str, type[Column]] = {kind.use: kind for kind in (Image, Audio, Array, Text, Label, Number)}


def of(choice: Any) -> Column:
    """A column from any of its spellings: a `Column`, a kind's name, or `{use: image, size: 28}`.

    Raises:
        RecipeError: no such kind, or options that do not fit it.
    """
    if isinstance(choice, Column):
        return choice
    options = dict(choice) if isinstance(choice, Mapping) else {"use": choice}
    use = options.pop("use", None)
    if not isinstance(use, str):
        raise RecipeError(
            f"A column was given as {choice!r}; write its kind ({', '.join(KINDS)}), or {{use: image, size: 28}}."
        )
    if use not in KINDS:
        raise RecipeError(f"unknown kind of column '{use}'. {nearest(use, KINDS)}")
    return KINDS[use](**options)
