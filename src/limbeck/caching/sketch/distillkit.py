"""Reads what DistillKit captured: a folder of Parquet files and `compression_config.yaml`.

A row of a file is a text: `input_ids` (uint64), and for every token but the first (which nothing predicts) a list of bytes
in `compressed_logprobs` and in `bytepacked_indices`; the lists of place i predict `input_ids[i + 1]`. Bytes of a token:

- ids: `k` numbers of ceil(log2 d) bits, the most probable class first, the highest bit first;
- log-probabilities, falling: `exact_k` of them as `exact_dtype`; the coefficients of `polynomial_terms` as `term_dtype`, a fit
  of the others over t = 0, 1, 2, ... (0 to 1 with `normalize_t`); for every one of `residual_bins` a scale and signed
  numbers of `element_bits` bits (from -2^(b-1), or -1 and 1 for one bit), which times the scale are added to the fit. With
  `delta_encoding` all these are differences to the one before.

The mass of the rest is not stored; it is what is missing to 1. Where a fit makes the known classes sum to more than
`1 - LEAST`, they are divided by their sum so that the rest has that much: their numbers are not a distribution.

Source: arcee-ai/DistillKit, README and `distillkit/compression` (the layout; the older one with `packed_indices` is not read).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.sketches import Sketch

SETTINGS = "compression_config.yaml"
LEAST = 1e-6
_Type = Literal["float16", "bfloat16", "float32", "float64"]


class Residuals(BaseModel):
    """So many values after the exact ones, each with what the fit lacks, times a scale."""

    scale_dtype: _Type
    element_bits: Annotated[int, Field(ge=1, le=64)]
    num_elements: Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """How the bytes of a token are laid out, with DistillKit's names."""

    model_config = ConfigDict(extra="forbid")

    d: Annotated[int, Field(ge=2)]
    k: Annotated[int, Field(ge=1)]
    exact_k: Annotated[int, Field(ge=0)]
    exact_dtype: _Type = "float32"
    polynomial_terms: list[int | Literal["sqrt", "exp"]] | None = None
    term_dtype: _Type = "float32"
    residual_bins: list[Residuals] = []
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @classmethod
    def of(cls, told: Mapping[str, Any] | str | Path) -> Settings:
        """From a mapping, or a YAML file.

        Raises:
            RecipeError: what is told is not such settings.
        """
        if not isinstance(told, Mapping):
            import yaml

            found = yaml.safe_load(Path(told).read_text())
            return cls.of(found if isinstance(found, Mapping) else {})
        try:
            return cls(**told)
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(
                f"DistillKit's settings: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}. Needed are those of "
                "`logprob_compressor` (d, k, exact_k, ...), with which the logits were captured; the legacy layout is not read."
            ) from error

    @property
    def ids_bytes(self) -> int:
        """Of the classes of a token."""
        return -(-self.k * self._id_bits // 8)

    @property
    def log_probs_bytes(self) -> int:
        """Of the log-probabilities of a token."""
        terms = len(self.polynomial_terms or ()) * _size(self.term_dtype)
        bins = sum(_size(b.scale_dtype) + -(-b.num_elements * b.element_bits // 8) for b in self.residual_bins)
        return self.exact_k * _size(self.exact_dtype) + terms + bins

    @property
    def _id_bits(self) -> int:
        return math.ceil(math.log2(self.d))

    def ids(self, packed: UInt8[Tensor, "tokens bytes"]) -> Int64[Tensor, "tokens k"]:
        """The classes."""
        return _numbers(packed, self._id_bits, self.k)

    def log_probs(self, packed: UInt8[Tensor, "tokens bytes"]) -> Float[Tensor, "tokens k"]:
        """Their log-probabilities, as they were stored."""
        if not len(packed):
            return torch.zeros(0, self.k)
        exact, rest = _values(packed, self.exact_dtype, self.exact_k)
        fitted = torch.zeros(len(packed), self.k - self.exact_k)
        if self.polynomial_terms:
            coefficients, rest = _values(rest, self.term_dtype, len(self.polynomial_terms))
            fitted = (coefficients @ self._terms().T).float()
        at = 0
        for each in self.residual_bins:
            scale, rest = _values(rest, each.scale_dtype, 1)
            size = -(-each.num_elements * each.element_bits // 8)
            numbers = _numbers(rest[:, :size], each.element_bits, each.num_elements).float()
            signed = 2 * numbers - 1 if each.element_bits == 1 else numbers - 2.0 ** (each.element_bits - 1)
            fitted[:, at : at + each.num_elements] += signed * scale.float()
            at, rest = at + each.num_elements, rest[:, size:]
        together = torch.cat([exact.float(), fitted], -1)
        return together.cumsum(-1) if self.delta_encoding else together

    def sketch(self, log_probs: UInt8[Tensor, "tokens bytes"], ids: UInt8[Tensor, "tokens bytes"]) -> Sketch:
        """The tokens, with what is missing to 1 as the rest."""
        classes, found = self.ids(ids), self.log_probs(log_probs).double()
        found = found.masked_fill(found.isnan() | (classes >= self.d), -math.inf)
        mass = found.exp().sum(-1, keepdim=True)
        most = 1.0 if self.k >= self.d else 1.0 - LEAST
        found = torch.where(mass > most, found - mass.log() + math.log(most), found)
        rest = torch.log1p(-mass.clamp(max=most)).squeeze(-1)
        rest = rest.masked_fill(
            torch.isfinite(found).sum(-1) >= self.d, -math.inf
        )  # nothing is left, whatever rounding says
        return Sketch(classes, found.float(), rest.float(), self.d)

    def _terms(self) -> Float[Tensor, "t terms"]:
        count = self.k - self.exact_k
        dtype = getattr(torch, self.term_dtype)
        t = torch.linspace(0, 1, count, dtype=dtype) if self.normalize_t else torch.arange(count, dtype=dtype)
        powers = [t**term if isinstance(term, int) else getattr(torch, term)(t) for term in self.polynomial_terms or ()]
        return torch.stack(powers, -1)


class Text(NamedTuple):
    """A captured text: its tokens, and the bytes about its second token and on."""

    input_ids: Int64[Tensor, "length"]
    log_probs: UInt8[Tensor, "tokens bytes"]
    ids: UInt8[Tensor, "tokens bytes"]


def read(
    folder: str | Path, settings: Settings | Mapping[str, Any] | None = None
) -> Iterator[tuple[Int64[Tensor, "length"], Sketch]]:
    """Every text of a captured folder (or of one file): its tokens, and the sketches of its second token and on.

    Args:
        settings: those of the capture; None: what `compression_config.yaml` beside the files says.

    Raises:
        RecipeError: no files, no settings, other columns, or bytes that do not fit the settings.
    """
    how = settings_of(folder, settings)
    for text in texts(folder, how):
        yield text.input_ids, how.sketch(text.log_probs, text.ids)


def files_of(folder: str | Path) -> list[Path]:
    """The Parquet files of a capture, in order.

    Raises:
        RecipeError: there are none.
    """
    place = Path(folder)
    files = sorted(place.glob("*.parquet"), key=lambda p: (len(p.name), p.name)) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        raise RecipeError(f"{place} holds no Parquet files.")
    return files


def settings_of(folder: str | Path, settings: Settings | Mapping[str, Any] | None = None) -> Settings:
    """The settings that are given, or those beside the files.

    Raises:
        RecipeError: there are none, or they are not such.
    """
    if settings is not None:
        return settings if isinstance(settings, Settings) else Settings.of(settings)
    beside = files_of(folder)[0].parent / SETTINGS
    if not beside.is_file():
        raise RecipeError(
            f"{beside} is not there, so how the logits were packed is not known. Give settings={{d: ..., k: ...}}."
        )
    return Settings.of(beside)


def texts(folder: str | Path, how: Settings) -> Iterator[Text]:
    """Every text as it was captured."""
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise RecipeError("Parquet files need the package pyarrow: pip install pyarrow") from error
    for file in files_of(folder):
        parquet = pq.ParquetFile(file)
        missing = {"input_ids", "compressed_logprobs", "bytepacked_indices"} - set(parquet.schema_arrow.names)
        if missing:
            raise RecipeError(
                f"{file} has no column {sorted(missing)[0]}; it holds {', '.join(parquet.schema_arrow.names)}."
            )
        for group in parquet.iter_batches(batch_size=64):
            for row in group.to_pylist():
                yield _text(row, how, file)


def _text(row: Mapping[str, Any], how: Settings, file: Path) -> Text:
    input_ids = torch.tensor(row["input_ids"], dtype=torch.int64)
    needed = how.log_probs_bytes, how.ids_bytes
    log_probs, ids = map(_bytes, (row["compressed_logprobs"], row["bytepacked_indices"]), needed)
    if len(log_probs) and (log_probs.shape[1], ids.shape[1]) != needed:
        raise RecipeError(
            f"{file}: a token takes {log_probs.shape[1]} and {ids.shape[1]} bytes, and the settings say {needed[0]} and {needed[1]}. "
            "Give the settings with which the logits were captured."
        )
    if len(log_probs) not in (len(input_ids), len(input_ids) - 1) or len(ids) != len(log_probs):
        raise RecipeError(f"{file}: a text of {len(input_ids)} tokens has logits of {len(log_probs)}.")
    return Text(input_ids, log_probs[: len(input_ids) - 1], ids[: len(input_ids) - 1])


def _size(dtype: str) -> int:
    kind: torch.dtype = getattr(torch, dtype)
    return kind.itemsize


def _bytes(lists: Sequence[Sequence[int]], size: int) -> UInt8[Tensor, "tokens bytes"]:
    """So many bytes for each token, or as many as there are; a text of one token has none."""
    return torch.from_numpy(np.array(lists, dtype=np.uint8).reshape(len(lists), -1 if lists else size))


def _values(packed: Tensor, dtype: str, count: int) -> tuple[Float[Tensor, "tokens count"], Tensor]:
    """Numbers at the front, and what follows them."""
    kind: torch.dtype = getattr(torch, dtype)
    size = count * kind.itemsize
    return packed[:, :size].contiguous().view(kind).view(len(packed), count), packed[:, size:]


def _numbers(packed: UInt8[Tensor, "tokens bytes"], bits: int, count: int) -> Int64[Tensor, "tokens count"]:
    """So many whole numbers of so many bits, the highest bit first."""
    flat = np.unpackbits(packed.numpy(), axis=-1)[:, : count * bits].reshape(len(packed), count, bits)
    found = np.zeros((len(packed), count), dtype=np.int64)
    for bit in range(bits):
        found = found << 1 | flat[..., bit]
    return torch.from_numpy(found)
