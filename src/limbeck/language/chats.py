"""Which parts of a text a language model has to write: chats, questions with answers, plain texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from limbeck.errors import RecipeError
from limbeck.language.tokens import Located, Tokens, bytes_before, whole_characters

ASSISTANT = "assistant"


@dataclass(frozen=True)
class Sample:
    """A text, and the parts of it that count (begin, end in characters, in order, apart from each other).

    `front`, `back`: the token that begins a text, and the one that ends it, go around this one; a chat template writes them
    itself. `empty`: there is an answer, but nothing stands in it. `endless`: no end token after an answer.
    """

    text: str
    spans: Sequence[tuple[int, int]]
    front: bool = False
    back: bool = False
    empty: bool = False
    endless: bool = False


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens.

    Attributes:
        ids: the tokens, with those that begin and end a bare text.
        counted: which of them the model has to write; the first is not predicted by anything all the same.
        bytes: how many bytes of text each counted one spells (0 for end tokens).
        ends: where in the text's bytes each token ends, never falling.
    """

    ids: Int64[np.ndarray, "tokens"]
    counted: Bool[np.ndarray, "tokens"]
    bytes: Int64[np.ndarray, "tokens"]
    ends: Int64[np.ndarray, "tokens"]


def plain(text: Any) -> Sample:
    """A text of which every token counts."""
    text = whole_characters(_words(text))
    return Sample(text, [(0, len(text))], front=True, back=True, empty=not text)


def answered(prompt: Any, completion: Any) -> Sample:
    """A beginning, and how it goes on: this counts, with the end token behind it."""
    prompt, completion = whole_characters(_words(prompt)), whole_characters(_words(completion))
    text = prompt + completion
    return Sample(text, [(len(prompt), len(text))], front=True, back=True, empty=not completion)


def chat(tokens: Tokens, messages: Any, first: int = 0) -> Sample:
    """A chat in the words of the tokenizer's chat template; the assistant's messages from the `first` one on count.

    Where the template marks what the assistant writes (`{% generation %}`), that counts. Else the chat is rendered up
    to each answer, as the model will be asked, and what the whole chat has after that is the answer, up to and with its
    end token. An end token that follows a marked part counts too: a model must learn to stop.

    Raises:
        RecipeError: no list of messages, roles that the template refuses, or a template that changes what it wrote
            before when the chat goes on, so that nobody can tell which tokens are the assistant's.
    """
    messages = checked(messages)
    answers = [at for at, message in enumerate(messages) if message["role"] == ASSISTANT and at >= first]
    text, marked = tokens.rendered(messages)
    if tokens.marks_answers:
        spans = [(begin, _with_end(tokens, text, end)) for begin, end in marked if end > begin]
        spans = spans[max(0, len(spans) - len(answers)) :] if first else spans
    else:
        spans = [_answer(tokens, messages, at, text) for at in answers]
    ends = tuple(map(tokens.spelt, tokens.eos))
    return Sample(
        text,
        spans,
        empty=bool(answers) and not any(messages[at]["content"].strip() for at in answers),
        endless=bool(spans) and not text[: spans[-1][1]].rstrip().endswith(ends),
    )


def _answer(tokens: Tokens, messages: Sequence[Mapping[str, Any]], at: int, text: str) -> tuple[int, int]:
    """Where in the whole chat's text the answer number `at` stands."""
    content = messages[at]["content"].strip()
    asked = tokens.render(messages[:at], ask=True)
    if text.startswith(asked):
        begin = len(asked)
    else:  # some templates put into the model's mouth what they leave out afterwards (<think>)
        history = tokens.render(messages[:at])
        begin = text.find(content, len(history)) if content and text.startswith(history) else -1
        if begin < 0:
            raise _unstable(tokens)
    so_far = text if at + 1 == len(messages) else tokens.render(messages[: at + 1])
    alone = text.startswith(so_far)  # then nothing but this answer stands between
    stop = len(so_far) if alone else len(text)
    said = text.find(content, begin, stop)
    if not alone and (said < 0 or not content):  # what earlier answers lose must not be what counts
        raise _unstable(tokens)
    after = max(said, begin) + (len(content) if said >= 0 else 0)
    ends = [(text.find(end, after, stop), len(end)) for end in map(tokens.spelt, tokens.eos)]
    place, size = min(((place, size) for place, size in ends if place >= 0), default=(stop, 0))
    if alone:
        return begin, place + size if size else begin + len(text[begin:stop].rstrip())
    return begin, place + size if not text[after:place].strip() else after


def _with_end(tokens: Tokens, text: str, end: int) -> int:
    for token in map(tokens.spelt, tokens.eos):
        if text.startswith(token, end):
            return end + len(token)
    return end


def _unstable(tokens: Tokens) -> RecipeError:
    return RecipeError(
        f"The chat template of {tokens.place or 'the tokenizer'} changes the beginning of a chat when the chat goes on, so "
        "which tokens are the assistant's cannot be told. Mark them in the template, {% generation %}...{% endgeneration %}, "
        "or give rows with one question and one answer."
    )


def checked(messages: Any) -> list[dict[str, Any]]:
    """Messages as templates take them: a role and a text each; parts of text are joined, keys that are None left out.

    Raises:
        RecipeError: something else was given.
    """
    if not isinstance(messages, (list, tuple, np.ndarray)) or not len(messages):
        raise RecipeError(f"messages are a list of {{role, content}}; given was {_short(messages)}.")
    found = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RecipeError(f"a message is {{role, content}}; given was {_short(message)}.")
        kept = {name: value for name, value in message.items() if value is not None}
        found.append({**kept, "content": whole_characters(_content(message.get("content")))})
    return found


def _content(content: Any) -> str:
    if isinstance(content, (list, tuple, np.ndarray)):
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise RecipeError(f"a message's content is text, or parts of type text; given was {_short(content)}.")
        return "".join(parts)
    return _words(content)


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple, dict)):
        raise RecipeError(f"needed is text; given was {_short(value)}.")
    return value if isinstance(value, str) else str(value.item() if hasattr(value, "item") else value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def encode(tokens: Tokens, samples: Sequence[Sample]) -> list[Encoded]:
    """The tokens of samples. No token stands partly in a part that counts: the parts begin where a model begins to write.

    So the tokens before each part, and up to its end, are those of that text alone. Where the tokenizer would join
    letters over such a place, the text is taken apart there.
    """
    whole = [_Whole.of(tokens, sample, ids) for sample, ids in zip(samples, tokens.encoded([s.text for s in samples]))]
    heads = iter(tokens.encoded([head for one in whole for _, _, head in one.heads]))
    found = []
    for sample, one in zip(samples, whole, strict=True):
        located, cuts, fits = one.located, {0: 0, len(sample.text): len(one.located.ids)}, True
        for bound, known, _ in one.heads:
            head = next(heads)
            cuts[bound] = known + len(head)
            fits &= located.ids[known : cuts[bound]] == head
        if not fits:
            located, cuts = _apart(tokens, sample.text, sorted({bound for bound, _, _ in one.heads}))
        found.append(_encoded(tokens, sample, located, cuts))
    return found


@dataclass(frozen=True)
class _Whole:
    """A text as the tokenizer has it in one piece.

    `heads`: for each place where a part that counts begins or ends: the place, how many tokens are sure to stand before
    it, and the text from there to the place, whose tokens must be the next ones. No tokenizer looks past a special token.
    """

    located: Located
    heads: list[tuple[int, int, str]]

    @classmethod
    def of(cls, tokens: Tokens, sample: Sample, ids: list[int]) -> _Whole:
        text = sample.text
        inner = [bound for span in sample.spans for bound in span if 0 < bound < len(text)]
        located = Located(ids, tokens.ends(ids, text))
        if not inner:
            return cls(located, [])
        before = bytes_before(text)
        special = np.flatnonzero(tokens.is_special(np.array(ids, np.int64)))
        reached = np.searchsorted(located.ends[special], before[inner], side="right")
        heads = []
        for bound, passed in zip(inner, reached.tolist(), strict=True):
            known = int(special[passed - 1]) if passed else 0
            start = int(np.searchsorted(before, located.ends[known - 1])) if known else 0
            heads.append((bound, known, text[start:bound]))
        return cls(located, heads)


def _apart(tokens: Tokens, text: str, bounds: Sequence[int]) -> tuple[Located, dict[int, int]]:
    """The ids of a text with a token boundary at each bound, and how many ids are before it."""
    before = bytes_before(text)
    ids, ends, cuts = [], [], {0: 0}
    for begin, end in pairwise([0, *bounds, len(text)]):
        part = tokens.continuing(text[begin:end]) if begin else tokens.located(text[:end])
        ids += part.ids
        ends.append(part.ends + before[begin])
        cuts[end] = len(ids)
    return Located(ids, np.concatenate(ends)), cuts


def _encoded(tokens: Tokens, sample: Sample, located: Located, cuts: Mapping[int, int]) -> Encoded:
    ids = np.array(located.ids, np.int64)
    before = bytes_before(sample.text)
    ends = located.ends
    starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
    counted, spelt = np.zeros(len(ids), bool), np.zeros(len(ids), np.int64)
    for begin, end in sample.spans:
        mine = slice(cuts[begin], cuts[end])
        counted[mine] = True
        span = before[begin], before[end]
        spelt[mine] = np.clip(ends[mine], *span) - np.clip(starts[mine], *span)
    spelt[tokens.is_special(ids)] = 0
    front = list(tokens.front) if sample.front else []
    back = list(tokens.eos[:1]) if sample.back else []
    if front or back:
        ids = np.array([*front, *ids, *back], np.int64)
        counted = np.concatenate([np.zeros(len(front), bool), counted, np.ones(len(back), bool)])
        spelt = np.pad(spelt, (len(front), len(back)))
        ends = np.concatenate([np.zeros(len(front), np.int64), ends, np.full(len(back), before[-1])])
    return Encoded(ids, counted, spelt, ends)
