"""A teacher behind an OpenAI-compatible server: asked over the network, every paid answer kept, nothing asked twice."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.actors import Batch, Replace
from limbeck.errors import RecipeError
from limbeck.language.tokens import Tokens
from limbeck.signals import Signals
from limbeck.sketches import Sketch
from limbeck.teachers import naming, sketching
from limbeck.teachers.answers_only import AnswersOnly
from limbeck.teachers.asking import EndpointError, Price, Server
from limbeck.teachers.journal import NAME, Journal, key_of
from limbeck.views import View

__all__ = ["Endpoint", "EndpointError", "Price"]


class Endpoint(AnswersOnly):
    """A model behind an OpenAI-compatible server, which gives `logits`.

    Without `prompt` it is a causal language model that is shown token ids, and `logits` is a `Sketch` [B, L, classes]: at
    position t the `top_logprobs` most probable tokens t+1 with their log-probabilities at temperature 1, and the mass of
    all others. Servers report them as `prompt_logprobs` (vLLM) or with `echo` and `logprobs`; which, the first question
    finds out. With `prompt` it is a model that answers in words, one of `labels`, and `logits` is [B, labels]: the
    label's is log(certainty), that of the others log((1 - certainty) / (labels - 1)), at least -100.

    Every answer is written to the journal before it is used and is never paid for again, in this run or another with the
    same journal. The cost is counted in `spent`.

    Args:
        endpoint: the server's address, `http://host:8000/v1`. The key, where it wants one, is in OPENAI_API_KEY.
        model: the name under which it serves the model.
        prompt: for answers in words: a template with the columns it shows, `"Which intent has: {text}? One of {labels}."`
        view: the columns: of token ids and mask (default `teacher_input_ids` and `teacher_attention_mask` where the data
            have them, else `input_ids` and `attention_mask`), or those that the prompt names.
        labels: the names of the classes; needed with `prompt`.
        price: US dollars per million tokens: `{input: 0.15, output: 0.6}`, or one number for both.
        top_logprobs: how many log-probabilities per token.
        classes: how many tokens the model's head has; else as many as the tokenizer has.
        tokenizer: the model's, as a path or an object; needed where the server reports tokens as texts.
        certainty: the probability of the label that was said, in (1 / labels, 1].
        unknown: what to do with an answer that names no label, or several: `refuse`, or take all labels as equally likely.
        concurrency: how many questions are under way at once.
        timeout, tries: seconds for one answer; how often one question is asked in all before the run stops.
        journal: the file of answers; default `answers-MODEL-SERVER.jsonl`, beside the folders of runs and caches (where
            there is none: in the current folder), so that all of them share it.

    Raises:
        RecipeError: options that do not fit together.
    """

    far = True
    only = "an endpoint gives answers only"
    itself = "the model itself: teacher=PATH"
    holds = ["logits"]

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        prompt: str | None = None,
        view: Any = None,
        labels: Iterable[str] | None = None,
        label_map: str | Mapping[str, str] = "name",
        price: Price | float | Mapping[str, float] | None = None,
        top_logprobs: int = 20,
        classes: int | None = None,
        tokenizer: Any = None,
        certainty: float = 1.0,
        unknown: Literal["refuse", "uniform"] = "refuse",
        concurrency: int = 8,
        timeout: float = 120.0,
        tries: int = 6,
        journal: str | Path | None = None,
    ):
        self._given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.labels = list(map(str, labels)) if labels is not None else None
        self.prompt, self.price, self.top, self.unknown = prompt, Price.of(price), top_logprobs, unknown
        self.concurrency, self.certainty, self.label_map = concurrency, certainty, label_map
        self._check(prompt, certainty)
        self.sketches = prompt is None
        self._classes = classes
        self._ids: dict[str, int | None] | None = None
        self.server = Server(endpoint, model, timeout, tries, self._id if tokenizer is not None else None)
        self._stand_in(model, f"{model} at {endpoint}")
        named = isinstance(tokenizer, (str, Path))
        self.source.tokenizer = str(tokenizer) if named else None
        self._tokenizer = (
            None if named or tokenizer is None else tokenizer if isinstance(tokenizer, Tokens) else Tokens(tokenizer)
        )
        self.view = None if view is None else View.of(view)
        self.allowed: Callable[[], None] = lambda: None
        self._run = ""
        self._journal: Journal | None = Journal(journal) if journal is not None else None

    def __repr__(self) -> str:
        return f"Endpoint({self.server.endpoint!r}, {self.server.model!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._given | {"journal": self._journal.path if self._journal else None},)

    @property
    def journal(self) -> Journal:
        """Where the answers are."""
        if self._journal is None:
            self._journal = Journal(self._file)
        return self._journal

    @property
    def _file(self) -> str:
        """What the file is called that several runs share: by model and server."""
        mark = hashlib.sha256(self.server.endpoint.encode()).hexdigest()[:8]
        name = "".join(c if c.isalnum() or c in "-." else "-" for c in self.server.model)
        return f"answers-{name}-{mark}.jsonl"

    @property
    def spent(self) -> float:
        """US dollars that this run has paid, also before it was stopped and resumed."""
        return self.journal.usd.get(self._run, 0.0)

    @property
    def classes(self) -> int:
        """How many classes `logits` has."""
        if self.prompt is not None:
            assert self.labels is not None
            return len(self.labels)
        if self._classes is not None:
            return self._classes
        if self.tokenizer is None:
            raise RecipeError(
                f"{self.server.endpoint} does not say how many tokens {self.server.model} knows: teacher.classes=152064, or its tokenizer, teacher.tokenizer=PATH"
            )
        return self.tokenizer.size

    def facts(self) -> dict[str, Any]:
        """The keys of a recipe's `teacher` that stand for it; `model` is this object."""
        told = {name: value for name, value in self._given.items() if name != "tokenizer"}
        path = self._given["tokenizer"] if isinstance(self._given["tokenizer"], (str, Path)) else None
        return told | {
            "model": self,
            "tokenizer": None if path is None else str(path),
            "view": self.view,
            "labels": self.labels,
        }

    def keep_in(self, folder: Path, *, main: bool = True) -> None:
        """Keep the answers beside this run's folder, for all runs there, and link them into it as `answers.jsonl`.

        A run that was moved brings the answers in its folder along, and those in the current folder (which somebody got
        without a run) are taken over. `main`: whether this process writes files. Where a journal was named, that is the
        one, and only the costs are counted for this run.
        """
        self._run = str(folder.resolve())
        if self._given["journal"] is not None:
            return
        shared, own = folder.resolve().parent / self._file, folder / NAME
        self._journal = Journal(shared)
        for other in (Path(self._file), own):
            if other.exists() and not (shared.exists() and other.samefile(shared)):
                self._journal.absorb(other)
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        shared.touch()
        if own.exists() and not own.samefile(shared):
            own.unlink()
        if not own.exists():
            own.hardlink_to(shared)

    def __call__(
        self,
        batch: Batch,
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """What the model says of these samples: `logits`. What was not asked before is asked now, several at once.

        Raises:
            EndpointError: the server does not answer, or not what was asked; answers that came are kept.
            RecipeError: another signal, or something to be done inside the teacher.
        """
        self._only_read(replace, until, reads)
        if self.view is None:
            self.look_at(batch)
        return Signals(logits=self._sketch(batch) if self.prompt is None else self._said(batch))

    def tap(self, name: str, path: str) -> NoReturn:
        """There is no network to listen to."""
        raise RecipeError(f"{path}: {self.lacks(name)}")

    def look_at(self, columns: Iterable[str]) -> View:
        """The columns that are sent, where none were named."""
        if self.view is None and self.prompt is not None:
            self.view = View(*(name for name in _fields(self.prompt) if name != "labels"))
        if self.view is None:
            own = "teacher_" if "teacher_input_ids" in set(columns) else ""
            self.view = View(f"{own}input_ids", f"{own}attention_mask")
        return self.view

    def probe(self, batch: Batch) -> Mapping[str, tuple[int, ...]]:
        """The shape of the logits; nothing is asked."""
        if self.prompt is not None:
            self.shapes = {"logits": (self.classes,)}
        else:
            self.shapes = {"logits": (*self._tokens_of(batch)[0].shape[1:], self.classes)}
        return self.shapes

    def lacks(self, name: str) -> str:
        """The sentence for somebody who reads another signal."""
        return f"an endpoint gives 'logits' and nothing else, no '{name}'. Use the model itself: teacher=PATH"

    def fingerprint(self) -> str:
        """Of what is asked of whom; its weights are not known."""
        return key_of(model=self.server.model, prompt=self.prompt, labels=self.labels, top_logprobs=self.top)[:16]

    def _sketch(self, batch: Batch) -> Sketch:
        """Each row (of a packed one each document) is a question; positions behind its end stand for nothing known."""
        ids, mask = self._tokens_of(batch)
        segment = batch.get("segment")
        spans = sketching.spans(mask if segment is None or self._own_columns else segment + 1)
        texts = [ids[row, start:end].tolist() for row, start, end in spans]
        asked = [
            {"model": self.server.model, "ids": text, "top_logprobs": min(self.top, self.classes)} for text in texts
        ]
        answers = self._ask(asked, lambda q: self.server.continuations(q["ids"], q["top_logprobs"]))
        sketch = sketching.sketch(ids.shape, spans, answers, self.classes)
        if sketch.ids.numel() and int(sketch.ids.max()) >= self.classes:
            raise RecipeError(
                f"{self.server.model} knows a token {int(sketch.ids.max())}, and teacher.classes (or the tokenizer) says that there are {self.classes}."
            )
        return sketch.to(batch_device(batch))

    def _said(self, batch: Batch) -> Float[Tensor, "batch labels"]:
        """One label per sample, as logits."""
        assert self.prompt is not None
        assert self.labels is not None
        columns = {name: batch[name] for name in self.look_at(batch).columns}
        rows = len(next(iter(columns.values())))
        filled = [
            self.prompt.format(
                labels=", ".join(self.labels), **{name: _plain(values[i]) for name, values in columns.items()}
            )
            for i in range(rows)
        ]
        asked = [{"model": self.server.model, "prompt": text} for text in filled]
        answers = self._ask(asked, lambda q: self.server.words([{"role": "user", "content": q["prompt"]}]))
        found = [naming.label_in(answer["text"], self.labels) for answer in answers]
        lost = [answer["text"] for answer, label in zip(answers, found) if label is None]
        if lost and self.unknown == "refuse":
            raise EndpointError(
                f"{len(lost)} of {rows} answers of {self.server.model} name none of the {len(self.labels)} labels, or several, for example {lost[0][:80]!r}. "
                "Ask more clearly (teacher.prompt), or take them as knowing nothing: teacher.unknown=uniform"
            )
        logits = naming.logits(found, len(self.labels), self.certainty)
        return logits.to(batch_device(batch))

    def _ask(
        self, questions: list[dict[str, Any]], ask: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Answers from the journal, or from the server and then in the journal; what is asked twice here is asked once.

        When one fails, those under way are waited for (they are paid) and no further one is begun.
        """
        journal, keys = self.journal, [key_of(**question) for question in questions]
        found = {key: journal.get(key) for key in dict.fromkeys(keys)}
        new = {key: question for key, question in zip(keys, questions) if found[key] is None}
        if new:
            self.allowed()

            def pay(key: str) -> None:
                answer = ask(new[key])
                usd = self.price.usd(tuple(answer["usage"]))
                found[key] = {"key": key, "model": self.server.model, "run": self._run, "usd": usd, **answer}
                journal.add(found[key])  # type: ignore[arg-type]

            with ThreadPoolExecutor(self.concurrency) as pool:
                running = [pool.submit(pay, key) for key in new]
                try:
                    wait(running, return_when="FIRST_EXCEPTION")
                finally:
                    for one in running:
                        one.cancel()
            for one in running:
                if not one.cancelled():
                    one.result()
        return [found[key] for key in keys]  # type: ignore[misc]

    def _tokens_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        args, named = self.look_at(batch)(batch)
        ids, *rest = [*args, *named.values()]
        return ids.cpu(), rest[0].cpu() if rest else torch.ones_like(ids, device="cpu")

    @property
    def _own_columns(self) -> bool:
        assert self.view is not None
        return self.view.columns[0].startswith("teacher_")

    def _id(self, text: str) -> int | None:
        """The id of a token that a server reports as this text; None where it could be several."""
        if self._ids is None:
            assert self.tokenizer is not None
            self._ids = naming.ids_by_text(self.tokenizer)
        return self._ids.get(text)

    def _check(self, prompt: str | None, certainty: float) -> None:
        if prompt is None:
            return
        if not self.labels or len(self.labels) < 2:
            raise RecipeError(
                "teacher.prompt asks for one of several labels, and teacher.labels does not name them: teacher.labels=[yes, no]"
            )
        if not [name for name in _fields(prompt) if name != "labels"]:
            raise RecipeError(f"teacher.prompt {prompt!r} shows no column of the data: write one in braces, {{text}}.")
        if not 1 / len(self.labels) < certainty <= 1:
            raise RecipeError(
                f"teacher.certainty={certainty}: needed is more than 1/{len(self.labels)} (knowing nothing) and at most 1."
            )


def batch_device(batch: Batch) -> torch.device:
    """Where the batch's tensors are."""
    return next((value.device for value in batch.values() if isinstance(value, Tensor)), torch.device("cpu"))


def _again(given: dict[str, Any]) -> Endpoint:
    return Endpoint(**given)


def _fields(template: str) -> list[str]:
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
