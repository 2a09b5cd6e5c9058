"""A language model whose logits DistillKit captured: what it said is found again by the tokens that it was shown."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from limbeck.actors import Batch, Replace
from limbeck.caching.sketch import distillkit
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.language.store import Store, Writer, cache_folder
from limbeck.signals import Signals
from limbeck.sketches import Sketch
from limbeck.teachers.answers_only import AnswersOnly
from limbeck.teachers.sketching import Span, spans
from limbeck.views import View

_AT_ONCE = 64  # rows of data that are looked for together
_SHOWN = 6  # tokens of a text in a sentence


def is_captured(path: Any) -> bool:
    """Whether this is the path of a folder that DistillKit filled."""
    return isinstance(path, (str, Path)) and (Path(path) / distillkit.SETTINGS).is_file()


class Captured(AnswersOnly):
    """The answers of a language model that DistillKit captured: `logits` is a `Sketch` [batch, length, classes].

    They are found by tokens alone, and only where that is exact. A text of the data (a row, of a packed one each document)
    is answered where a captured text is the same tokens or begins with them: what a causal model says of the beginning
    does not depend on what follows. The data may go on by one token, the end, where the captured text stops; nothing is
    known of what predicts that one, and nothing is learnt there.

    Args:
        folder: of Parquet files and `compression_config.yaml`.
        tokenizer: where the teacher's tokenizer lies, if it is another than the student's: then the data have its tokens.

    Raises:
        RecipeError: no such files, or a key that is for networks.
    """

    stored = True
    sketches = True
    holds = ["logits"]

    def __init__(self, folder: str | Path, *, tokenizer: str | Path | None = None, **keys: Any):
        self.folder = Path(folder)
        self._stand_in("Captured", f"logits in {folder} that DistillKit captured", self.folder)
        self.only = f"{folder} holds its answers only"
        for name, value in keys.items():
            if value and (name, value) != ("label_map", "name"):
                raise RecipeError(f"teacher.{name} is for a network, and {self.only}. Leave it out.")
        self._mark = _mark(self.folder)
        self.texts = _texts(self.folder, self._mark)
        self.source.tokenizer = None if tokenizer is None else str(tokenizer)
        self._tokenizer = None
        self.view = None
        self.labels, self.label_map = None, "name"

    def __repr__(self) -> str:
        return f"Captured('{self.folder}')"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.folder, self.source.tokenizer)

    def __call__(
        self,
        batch: Batch,
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """What the teacher said of these texts.

        Raises:
            RecipeError: a text that was not captured, another signal, or something to be done inside the teacher.
        """
        self._only_read(replace, until, reads)
        shown, places = _documents(batch)
        how = self.texts.how
        ids = torch.zeros(*shown.shape, how.k, dtype=torch.int64)
        log_probs = torch.full(ids.shape, -torch.inf)
        log_tail = torch.zeros(shown.shape)  # where nothing is known, all of it is in the rest
        for row, start, end in places:
            found = self.texts.find(shown[row, start:end])
            if found is None:
                raise RecipeError(f"{self._strange(shown[row, start:end])} {_NEEDED}")
            sketch = self.texts.sketch(found, end - start)
            here = slice(start, start + len(sketch.ids))
            ids[row, here], log_probs[row, here], log_tail[row, here] = sketch.ids, sketch.log_probs, sketch.log_tail
        return Signals(logits=Sketch(ids, log_probs, log_tail, how.d).to(batch["id"].device, non_blocking=True))

    def tap(self, name: str, path: str) -> NoReturn:
        """There is no network to listen to."""
        raise RecipeError(f"{path}: {self.lacks(name)}")

    def look_at(self, columns: Iterable[str]) -> View:
        """Its tokens."""
        own = "teacher_" if "teacher_input_ids" in set(columns) else ""
        return View(f"{own}input_ids", f"{own}attention_mask")

    def probe(self, batch: Batch) -> Mapping[str, tuple[int, ...]]:
        """The shape of the logits."""
        self.shapes = {"logits": (_documents(batch)[0].shape[1], self.texts.how.d)}
        return self.shapes

    def lacks(self, name: str) -> str:
        """The sentence for somebody who reads another signal."""
        return f"{self.folder} holds 'logits' of the teacher and nothing else, no '{name}'. Use the teacher itself"

    def fingerprint(self) -> str:
        """Of the settings, and of each file's name, size and end, where Parquet sums up what is in it."""
        return self._mark

    def check_data(self, data: Data) -> None:
        """Refuse data whose training texts were not captured, all of them, before anything is trained."""
        for name, split in data.splits.items():
            texts, strange = 0, []
            for low in range(0, len(split), _AT_ONCE):
                shown, places = _documents(split.__getitems__(list(range(low, min(low + _AT_ONCE, len(split))))))
                texts += len(places)
                strange += [t for t in (shown[r, a:b] for r, a, b in places) if self.texts.find(t) is None]
            self.texts.answered[name] = not strange
            if strange and name == "train":
                raise RecipeError(
                    f"{len(strange):,} of {texts:,} texts of {name}: {self._strange(strange[0])} {_NEEDED}"
                )

    def answers(self, split: str) -> bool:
        """Whether all texts of this split were captured, as far as the data were looked at."""
        return self.texts.answered.get(split, False)

    def _strange(self, text: Tensor) -> str:
        held = self.texts.store
        return (
            f"the tokens {_begin(text)} ({len(text):,} of them) are no text of {self.folder}, and none of its texts begins with them. "
            f"It holds {len(held):,} texts of at most {int(held.lengths('ids').max()):,} tokens; the first is {_begin(held['ids', 0])}."
        )


_NEEDED = (
    "Needed are the very tokens that the teacher was shown, from the first one on: the same tokenizer and chat template, and rows that are not "
    "longer than what was captured (data.length), nor begin in the middle of a text."
)


@dataclass
class _Texts:
    """All captured texts, their bytes in memory or in mapped files, and their order as texts.

    `answered` is what `check_data` found: it outlasts the teacher, which is built anew to be measured.
    """

    how: distillkit.Settings
    store: Store
    order: list[int]
    answered: dict[str, bool] = field(default_factory=dict)

    def find(self, tokens: Tensor) -> int | None:
        """A captured text that begins with these tokens, or is all of them but the last."""
        spelled = _spelled(tokens.numpy())
        at = bisect.bisect_left(self.order, spelled, key=self._text)
        if at < len(self.order) and self._text(self.order[at]).startswith(spelled):
            return self.order[at]
        shorter = spelled[:-4]
        at = bisect.bisect_left(self.order, shorter, key=self._text)
        same = len(shorter) > 0 and at < len(self.order) and self._text(self.order[at]) == shorter
        return self.order[at] if same else None

    def sketch(self, row: int, length: int) -> Sketch:
        """What was said in the first places of a text, up to the last but one of `length` tokens."""
        places = min(length, len(self.store["ids", row])) - 1
        log_probs, ids = (
            torch.from_numpy(self.store[name, row].reshape(-1, size)[:places].copy())
            for name, size in (("log_probs", self.how.log_probs_bytes), ("classes", self.how.ids_bytes))
        )
        return self.how.sketch(log_probs, ids)

    def _text(self, row: int) -> bytes:
        return _spelled(self.store["ids", row])


@lru_cache(maxsize=4)
def _texts(folder: Path, mark: str) -> _Texts:
    """Read once, though a teacher is built more than once; `mark` tells when the files have changed."""
    how = distillkit.settings_of(folder)
    kinds = {"ids": "int32", "log_probs": "uint8", "classes": "uint8"}
    writer = Writer(kinds, cache_folder() / f"captured-{mark}")
    store = writer.found()
    if store is None:
        for text in distillkit.texts(folder, how):
            writer.add(
                {
                    "ids": text.input_ids.numpy(),
                    "log_probs": text.log_probs.numpy().ravel(),
                    "classes": text.ids.numpy().ravel(),
                }
            )
        if not len(writer):
            raise RecipeError(f"{folder} holds Parquet files, and no text in them.")
        store = writer.finish({})
    return _Texts(how, store, sorted(range(len(store)), key=lambda row: _spelled(store["ids", row])))


def _documents(batch: Batch) -> tuple[Tensor, list[Span]]:
    """The teacher's tokens, and where in them a text begins and ends."""
    own = "teacher_" if "teacher_input_ids" in batch else ""
    segment = None if own else batch.get("segment")
    mark = batch[f"{own}attention_mask"] if segment is None else segment + 1
    return batch[f"{own}input_ids"].cpu(), spans(mark.cpu())


def _mark(folder: Path) -> str:
    digest = hashlib.sha256((folder / distillkit.SETTINGS).read_bytes())
    for path in distillkit.files_of(folder):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 2**16))
            digest.update(f"{path.name}/{size}/".encode() + file.read())
    return digest.hexdigest()[:16]


def _spelled(tokens: np.ndarray) -> bytes:
    """Four bytes for each token, so that texts are ordered as their tokens are."""
    return tokens.astype(">u4").tobytes()


def _begin(tokens: Any) -> str:
    few = ", ".join(str(int(token)) for token in tokens[:_SHOWN])
    return f"[{few}{', ...' if len(tokens) > _SHOWN else ''}]"


def _again(folder: Path, tokenizer: str | None) -> Captured:
    return Captured(folder, tokenizer=tokenizer)
