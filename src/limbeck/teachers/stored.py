"""A teacher that was asked before: it answers from the memory-mapped shards of a cache, by the samples' ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.actors import Batch, Replace, Teacher
from limbeck.caching import form, packing
from limbeck.caching.form import is_cache
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for
from limbeck.signals import Signals
from limbeck.teachers.answers_only import AnswersOnly
from limbeck.views import View

__all__ = ["Stored", "is_cache"]


_LOOKS = 2  # how many batches of a training are compared with the data


class Stored(AnswersOnly):
    """The answers of a teacher about one data set, asked once by `limbeck cache`.

    It gives back what was stored, per sample and (where the teacher's view draws) per random view, in the type in which
    the teacher gave it; top-k logits come back as log-probabilities (`limbeck.caching.packing.Top`), those of a language
    model as a `Sketch` (`limbeck.caching.packing.Tokens`). It cannot be asked anything new: no other data, no replaced features, no gradients through it.

    Args:
        folder: of the cache.
        of: the teacher itself, if it is at hand: refused where the answers are another's.
        weights: its weights' file, checked in the same way.
        view, taps: as they were; others are refused.
        labels, label_map: as for any teacher.
        tokenizer: where that of the teacher lies, if it is not where it was.

    Raises:
        RecipeError: an unfinished or damaged cache, or one of another teacher, view or place.
    """

    stored = True

    def __init__(
        self,
        folder: str | Path,
        *,
        of: Teacher | None = None,
        view: Any = None,
        taps: Mapping[str, str] | None = None,
        weights: str | Path | None = None,
        labels: Iterable[str] | None = None,
        label_map: str | Mapping[str, str] = "name",
        args: Mapping[str, Any] | None = None,
        dtype: Any = None,
        tokenizer: str | Path | None = None,
    ):
        self.folder = Path(folder)
        self.header = form.read(self.folder)
        self.packings = {name: packing.read(spec) for name, spec in self.header["signals"].items()}
        self._open()
        told = self.header["teacher"]
        self._stand_in(told["name"], f"stored answers in {folder} of {told['from']}", self.folder)
        self.only = f"{self.folder} holds its answers only"
        place = tokenizer if tokenizer is not None else told.get("tokenizer")
        if place is not None and (tokenizer is not None or Path(place).exists()):  # the teacher's folder may be gone
            self.source.tokenizer = str(place)
        self._tokenizer = None
        self.view = View.of(told["view"])
        self.labels = list(map(str, labels)) if labels is not None else told["labels"]
        self.label_map = label_map
        self.paths = dict(told["taps"])
        self.holds = list(self.header["signals"])
        self.shapes = {name: tuple(spec["shape"]) for name, spec in self.header["signals"].items()}
        logits = self.packings.get("logits")
        self.sketches = isinstance(logits, packing.Tokens)
        self.drawn = isinstance(logits, packing.Tokens) and logits.codec.draws
        self.paired: dict[str, list[list[str]]] = self.header["paired"]  # by method: student's place, its path, signal
        self.embedding_width: int = told["embedding_width"]
        self._data: Data | None = None
        self._looks = 0
        self._check_given(of, view, taps, weights, args, dtype)

    def __repr__(self) -> str:
        return f"Stored('{self.folder}', {', '.join(self.holds)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Stored, (self.folder,)

    def __call__(
        self,
        batch: Batch,
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """What the teacher said of these samples (in these views); `reads`: only these signals, else all.

        Raises:
            RecipeError: a signal, a sample or a view that was not stored, or something to be done inside the teacher.
        """
        self._only_read(replace, until, reads)
        positions = self._find(batch["id"].cpu(), batch.get("view_seed"))
        if self._looks < _LOOKS and self._data is not None and "view_seed" in batch:
            self._looks += 1
            self._check_shown(batch, positions)
        rows = self._rows(positions)
        signals = Signals()
        for name in self.holds if reads is None else reads:
            how = self.packings[name]
            if isinstance(how, packing.Tokens):
                samples = rows.samples(self._parts[name][""], self._ends[name])
                signals[name] = how.unpack(samples, self.own(batch)).to(batch["id"].device, non_blocking=True)
                continue
            parts = {part: rows.of(tensors) for part, tensors in self._parts[name].items()}
            moved = {part: tensor.to(batch["id"].device, non_blocking=True) for part, tensor in parts.items()}
            signals[name] = how.unpack(moved)
        return signals

    def tap(self, name: str, path: str) -> Stored:
        """Nothing new can be listened to; a place that is stored under this name is given."""
        if name not in self.packings or self.paths.get(name, path) != path:
            raise RecipeError(f"{path}: {self.lacks(name)}")
        return self

    def look_at(self, columns: Iterable[str]) -> View:
        """The view in which the teacher was asked."""
        assert self.view is not None
        return self.view

    def probe(self, batch: Batch) -> Mapping[str, tuple[int, ...]]:
        """The stored signals' shapes."""
        return self.shapes

    def lacks(self, name: str) -> str:
        """The sentence for somebody who reads a signal that was not stored."""
        return (
            f"{self.folder} does not hold '{name}' of the teacher; it holds {', '.join(self.holds)}. Ask again for more, into another folder: "
            f"cache.signals=[{', '.join([*self.holds, name])}]"
        )

    def parameters_count(self) -> int:
        """How many parameters the teacher had."""
        return int(self.header["teacher"]["parameters"])

    def bytes_count(self) -> int:
        """Bytes of the teacher's state."""
        return int(self.header["teacher"]["bytes"])

    def fingerprint(self) -> str:
        """That of the teacher that was asked."""
        return "+".join(self.header["teacher"]["fingerprint"].values())

    def check_data(self, data: Data) -> None:
        """Refuse other data than those that the teacher was asked about."""
        asked = self.header["data"]
        if data.fingerprint != asked["fingerprint"]:
            raise RecipeError(
                f"{self.folder} holds answers about {asked['source']} (fingerprint {asked['fingerprint'][:12]}); these data are {data.source} "
                f"({data.fingerprint[:12]}): other rows, columns or classes. Use the data that were asked about, or ask again: limbeck cache RECIPE --out ANOTHER"
            )
        self._data, self._looks = data, 0

    def answers(self, split: str) -> bool:
        """Whether logits of this split were stored, as it is; draws do not tell how likely one class is."""
        return (
            "logits" in self.packings
            and not self.drawn
            and any(part["split"] == split and part["view"] is None for part in self.header["passes"])
        )

    def view_seeds(self, ids: Int64[Tensor, "batch"], seed: int, epoch: int) -> Int64[Tensor, "batch"]:
        """Where the teacher's view draws: the stored views, one per epoch, from the first again after the last."""
        views = self.header["views"]
        return seeds_for(ids, views["seed"], epoch % views["count"]) if views else seeds_for(ids, seed, epoch)

    def _open(self) -> None:
        header = self.header
        if not header["complete"]:
            raise RecipeError(f"{self.folder} is not finished. Go on with: limbeck cache RECIPE --out {self.folder}")
        damage = form.damage(self.folder, header, checksums=False)
        if damage:
            raise RecipeError(
                f"{self.folder}: {damage[0]} Mend it (only what is damaged is asked again): limbeck cache RECIPE --out {self.folder}"
            )
        files = [_mapped(self.folder / entry["file"]) for entry in header["shards"]]
        self._parts: dict[str, dict[str, list[Tensor]]] = {}
        for name in files[0] if files else ():
            if name.startswith("signals/"):
                signal, _, part = name.removeprefix("signals/").rpartition("/")
                self._parts.setdefault(signal, {})[part] = [tensors[name] for tensors in files]
        self._ends = {  # of samples that differ in length: where each ends in its shard
            name: [lengths.cumsum(0) for lengths in parts["length"]]
            for name, parts in self._parts.items()
            if isinstance(self.packings[name], packing.Tokens)
        }
        lengths = [len(tensors["id"]) for tensors in files]
        self._starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
        self._ids = torch.cat([tensors["id"] for tensors in files])
        self._clean = _Index([t.get("id") if "view_seed" not in t else None for t in files], self._starts)
        self._seen = _Index([t.get("view_seed") for t in files], self._starts)

    def _find(self, ids: Int64[Tensor, "batch"], seeds: Tensor | None) -> Int64[Tensor, "batch"]:
        """Where the answers about these samples lie, counted over all shards."""
        in_views = seeds is not None and self.header["views"] is not None
        positions, found = self._seen.find(seeds.cpu()) if in_views else self._clean.find(ids)  # type: ignore[union-attr]
        if in_views:
            found = found & (self._ids[positions] == ids)  # seeds are hashes: the sample is looked at too
        if not bool(found.all()):
            sample = int(ids[~found][0])
            how = "in this random view" if in_views else "as it is"
            splits = ", ".join(dict.fromkeys(part["split"] for part in self.header["passes"]))
            raise RecipeError(
                f"{self.folder} holds no answer about sample {sample} {how}. It was asked about {splits} of {self.header['data']['source']}"
                + (f", training in {self.header['views']['count']} views." if self.header["views"] else ".")
            )
        return positions

    def _rows(self, positions: Int64[Tensor, "batch"]) -> _Rows:
        """The same, shard by shard."""
        if len(self._starts) == 1 or not len(positions):
            return _Rows([(0, positions)], None)
        shards = torch.searchsorted(self._starts, positions, right=True) - 1
        order = shards.argsort()
        names, counts = shards[order].unique_consecutive(return_counts=True)
        pieces = (positions - self._starts[shards])[order].split(counts.tolist())
        return _Rows(list(zip(names.tolist(), pieces)), order.argsort())

    def _check_shown(self, batch: Batch, positions: Int64[Tensor, "batch"]) -> None:
        """Refuse a batch whose columns are not those of the data: answers are found by the rows' numbers alone."""
        assert self._data is not None
        assert self.view is not None
        for shard in (torch.searchsorted(self._starts, positions, right=True) - 1).unique().tolist():
            entry, start = self.header["shards"][shard], int(self._starts[shard])
            here = ((positions >= start) & (positions < start + entry["rows"])).nonzero().flatten()
            rows = self._data.splits[entry["split"]].__getitems__((positions[here] - start + entry["first"]).tolist())
            for column in self.view.columns:
                shown, known = batch[column], rows[column]
                if isinstance(known, Tensor):
                    same = shown.shape[1:] == known.shape[1:] and torch.allclose(
                        shown[here.to(shown.device)].cpu().double(), known.double(), rtol=0, atol=0, equal_nan=True
                    )
                else:
                    same = [shown[i] for i in here.tolist()] == list(known)
                if not same:
                    raise RecipeError(
                        f"the teacher was shown '{column}' as the data have it, and this method changes it (mixes samples, say) before it asks. "
                        f"{self.folder} holds no answers about that. Use the teacher itself."
                    )

    def _check_given(self, of: Teacher | None, view: Any, taps: Any, weights: Any, args: Any, dtype: Any) -> None:
        told, refuse = self.header["teacher"], f"{self.folder} holds the answers of {self.header['teacher']['from']}"
        if of is not None and fingerprints(of) != told["fingerprint"]:
            raise RecipeError(
                f"{refuse} (fingerprint {self.fingerprint()}), not of the teacher given along ({of.fingerprint()}). "
                "Give the cache alone, or ask this teacher: limbeck cache RECIPE --out ANOTHER"
            )
        if weights is not None and not (Path(weights).is_file() and form.sha256(Path(weights)) == told["weights"]):
            raise RecipeError(
                f"{refuse}, whose weights are not those of {weights}. Give the cache alone, or ask that teacher: limbeck cache RECIPE --out ANOTHER"
            )
        if view is not None and View.of(view).spec() != told["view"]:
            raise RecipeError(
                f"{refuse}, which was shown {told['view']}, not {View.of(view).spec()}. Leave teacher.view out, or ask again with that view."
            )
        for name, path in (taps or {}).items():
            self.tap(name, path)
        if args or dtype is not None:
            what = "args" if args else "dtype"
            raise RecipeError(f"teacher.{what} is for a network; {refuse}. Leave it out.")


@dataclass(frozen=True)
class _Rows:
    """Rows of several shards: those of one after those of another, and how to put them back into the batch's order."""

    pieces: list[tuple[int, Tensor]]
    back: Tensor | None

    def of(self, tensors: list[Tensor]) -> Tensor:
        """These rows of a tensor that is spread over the shards."""
        taken = [tensors[shard].index_select(0, rows) for shard, rows in self.pieces]
        return taken[0] if self.back is None else torch.cat(taken).index_select(0, self.back)

    def samples(self, tensors: list[Tensor], ends: list[Tensor]) -> list[NDArray[np.uint8]]:
        """The bytes of these rows, which differ in length."""
        found = []
        for shard, rows in self.pieces:
            last = ends[shard][rows]
            first = torch.where(rows > 0, ends[shard][rows - 1], 0)
            whole = tensors[shard].numpy()
            found += [whole[a:b] for a, b in zip(first.tolist(), last.tolist())]
        return found if self.back is None else [found[i] for i in self.back.tolist()]


class _Index:
    """From keys (ids, or seeds of views) to positions over all shards; None for a shard that has no such keys."""

    def __init__(self, keys: list[Tensor | None], starts: Tensor):
        places = [torch.arange(len(k)) + start for k, start in zip(keys, starts.tolist()) if k is not None]
        given = [k for k in keys if k is not None]
        joined = torch.cat(given) if given else torch.zeros(0, dtype=torch.int64)
        self.keys, order = joined.sort()
        self.positions = torch.cat(places)[order] if places else order
        self.plain = bool((self.keys == torch.arange(len(self.keys))).all())  # numbered from 0: no search is needed

    def find(self, keys: Int64[Tensor, "batch"]) -> tuple[Int64[Tensor, "batch"], Tensor]:
        """Positions, and for which keys there is one."""
        if not len(self.keys):
            return torch.zeros_like(keys), torch.zeros_like(keys, dtype=torch.bool)
        at = (keys if self.plain else torch.searchsorted(self.keys, keys)).clamp(0, len(self.keys) - 1)
        return self.positions[at], self.keys[at] == keys


def fingerprints(teacher: Teacher) -> dict[str, str]:
    """Of each network in a teacher."""
    return {name: member.fingerprint() for name, member in teacher.members.items()}


def _mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, in memory that the file is mapped into: read when they are used."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise RecipeError(f"{path} is damaged ({error}). Mend it: limbeck cache RECIPE --out {path.parent}") from error
