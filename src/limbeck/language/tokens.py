"""What a tokenizer is to the rest of Limbeck: text to ids and back, where texts end, and whether two are the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from limbeck.errors import RecipeError

# Said to the user wherever it is used; kept with the student, so that it is asked as it was taught.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['role'] | capitalize }}:\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{{ eos_token or '' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "Limbeck-probe"
_ANCHORS = ("\n", "a", ".", "1", " ", "Z")


class Located(NamedTuple):
    """The ids of a text and, in its UTF-8 bytes, where each token ends (never falling)."""

    ids: list[int]
    ends: Int64[np.ndarray, "tokens"]


class Tokens:
    """A tokenizer of transformers, and the facts about it that training needs.

    Attributes:
        tokenizer: the tokenizer of transformers.
        place: the folder or hub name that it came from.
        eos: ids that end a text or an answer; the first is the tokenizer's own, the others are those that
            `generation_config.json` names and the one that the chat template writes after an answer.
        pad: the id that fills rows up (where there is none: the end of a text, else 0; it is never counted).
        bos: the id that begins a text, or None.
        front: what the tokenizer puts before a plain text of its own accord: (bos,) or nothing.
        size: how many ids there are: one more than the greatest.
        template: its chat template, or `PLAIN_TEMPLATE` where it has none (`has_template` says which).
    """

    def __init__(self, tokenizer: Any, place: str = "", ends: Iterable[int] = ()) -> None:
        self.tokenizer, self.place = tokenizer, place
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        if not vocabulary:
            raise RecipeError(f"The tokenizer of {place or type(tokenizer).__name__} has no tokens.")
        self.size = max(vocabulary.values()) + 1
        own: str | None = getattr(tokenizer, "chat_template", None)
        if isinstance(own, Mapping):  # several templates by name: tools, retrieval, ...
            own = own.get("default")
        self.has_template = own is not None
        self.template: str = PLAIN_TEMPLATE if own is None else own
        self.bos: int | None = tokenizer.bos_token_id
        front = list(tokenizer("", add_special_tokens=True).input_ids)
        self.front: tuple[int, ...] = (self.bos,) if self.bos is not None and front[:1] == [self.bos] else ()
        found = [tokenizer.eos_token_id, *ends, self._after_answers()]
        self.eos: tuple[int, ...] = tuple(dict.fromkeys(int(one) for one in found if one is not None))
        pad = tokenizer.pad_token_id
        self.pad: int = int(pad) if pad is not None else (self.eos[0] if self.eos else 0)

    @classmethod
    def load(cls, place: str | Path) -> Tokens:
        """The tokenizer of a local folder, or of the hub.

        Raises:
            RecipeError: transformers is missing, or there is no tokenizer.
        """
        try:
            from transformers import AutoTokenizer, GenerationConfig
        except ModuleNotFoundError as error:
            raise RecipeError("Tokenizers need the package transformers: pip install 'limbeck[text]'.") from error
        folder = Path(place).expanduser()
        name = str(folder) if folder.exists() else str(place)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # transformers raises many types; all mean that there is no tokenizer to be had
            held = f" It holds: {', '.join(sorted(p.name for p in folder.iterdir())[:10])}." if folder.is_dir() else ""
            raise RecipeError(
                f"{place} gave no tokenizer ({type(error).__name__}: {_first_line(error)}).{held} Needed is a folder with "
                "tokenizer.json (a model saved with its tokenizer: tokenizer.save_pretrained(folder)), or a hub name."
            ) from error
        try:
            ends = GenerationConfig.from_pretrained(name).eos_token_id
        except (OSError, ValueError):  # a tokenizer may come alone
            ends = None
        return cls(tokenizer, str(place), [ends] if isinstance(ends, int) else ends or ())

    def encode(self, text: str) -> list[int]:
        """The ids of a text; special tokens are not added (those spelt out in the text are found)."""
        return self.encoded([text])[0]

    def encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts at once."""
        if not texts:
            return []
        sound = [whole_characters(text) for text in texts]
        if self._encoder is not None:
            return [one.ids for one in self._encoder.encode_batch_fast(sound, add_special_tokens=False)]
        return [list(ids) for ids in self.tokenizer(sound, add_special_tokens=False, verbose=False)["input_ids"]]

    def located(self, text: str) -> Located:
        """The ids of a text, and where in its bytes each token ends."""
        ids = self.encode(text)
        return Located(ids, self.ends(ids, text))

    def ends(self, ids: Sequence[int], text: str) -> Int64[np.ndarray, "tokens"]:
        """Where in the bytes of a text each of its tokens `ids` ends (those that `encode` gives).

        By what the tokens spell, where that is the text; else (small letters, accents cut off, spaces thrown away, unknown
        letters) by the characters that the tokenizer says they are of, and by what they spell between special tokens.
        """
        data = whole_characters(text).encode()
        extra = _space_in_front(b"".join(map(self._spelling.__getitem__, ids)), data)
        numbers = np.array(ids, np.int64)
        if extra is not None:
            return np.maximum(np.cumsum(self._lengths[numbers]) - extra, 0)
        if self._encoder is None:
            from limbeck.language.pieces import spans

            return np.maximum.accumulate(np.maximum(spans(self.tokenizer, numbers.tolist(), text), 0))
        offsets = self._encoder.encode(whole_characters(text), add_special_tokens=False).offsets
        ends = bytes_before(text)[np.maximum.accumulate(np.array([end for _, end in offsets], np.int64))]
        for left, right in pairwise([-1, *np.flatnonzero(self.is_special(numbers)).tolist(), len(ids)]):
            run, start = slice(left + 1, right), int(ends[left]) if left >= 0 else 0
            if right - left > 1:
                spelt = b"".join(map(self.pieces.__getitem__, ids[run]))
                extra = _space_in_front(spelt, data[start : int(ends[right - 1])])
                if extra is not None:
                    ends[run] = np.maximum(start + np.cumsum(self._lengths[numbers[run]]) - extra, start)
        return ends

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens spelt out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def continuing(self, text: str) -> Located:
        """The same of a text that goes on from another: without the space that some tokenizers put before a text."""
        for anchor in _ANCHORS:
            before, both = self.encoded([anchor, anchor + text])
            if both[: len(before)] == before:
                ends = self.ends(both, anchor + text)[len(before) :]
                return Located(both[len(before) :], ends - len(anchor))
        return self.located(text)

    @cached_property
    def _encoder(self) -> Any:
        """The tokenizer without what it does around encoding: trimmed offsets, padding, truncation; None if it has no file."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        from tokenizers import Tokenizer

        bare = Tokenizer.from_str(backend.to_str())
        bare.no_padding()
        bare.no_truncation()
        bare.post_processor = None
        return bare

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of every token, by id; b"" for special ones. See `limbeck.language.pieces`."""
        from limbeck.language.pieces import pieces

        return pieces(self.tokenizer)

    @cached_property
    def _spelling(self) -> list[bytes]:
        """The pieces, and special tokens as they are written out."""
        return [
            self.spelt(i).encode() if special else piece
            for i, (piece, special) in enumerate(zip(self.pieces, self._special, strict=True))
        ]

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, "size"]:
        return np.array([len(piece) for piece in self._spelling], np.int64)

    @cached_property
    def specials(self) -> frozenset[int]:
        """Ids that stand for no text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def is_special(self, ids: Int64[np.ndarray, "tokens"]) -> Bool[np.ndarray, "tokens"]:
        """Which of the ids stand for no text."""
        return self._special[ids]

    @cached_property
    def _special(self) -> Bool[np.ndarray, "size"]:
        return np.isin(np.arange(self.size), sorted(self.specials))

    def spelt(self, number: int) -> str:
        """A special token as templates write it: `<|im_end|>`."""
        return str(self.tokenizer.convert_ids_to_tokens(number))

    @cached_property
    def marks_answers(self) -> bool:
        """Whether the template itself says which parts the model writes: `{% generation %}`."""
        return bool(_MARKS.search(self.template))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the vocabulary, how text is split, special tokens or the chat template."""
        told = {
            "parts": self._parts,
            "special": {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            "added": {str(i): str(token) for i, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items()},
            "template": self.template,
            "front": self.front,
            "eos": self.eos,
        }
        return _digest(told)

    @cached_property
    def _parts(self) -> dict[str, Any]:
        """How text becomes ids, as the tokenizer's own file says; of one without a file: its class and vocabulary."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return {"class": type(self.tokenizer).__name__, "vocabulary": sorted(self.tokenizer.get_vocab().items())}
        told = json.loads(backend.to_str())
        return {name: told.get(name) for name in ("normalizer", "pre_tokenizer", "model")}

    @cached_property
    def _way(self) -> str:
        return _digest(self._parts)

    def same_as(self, other: Tokens) -> bool:
        """Whether every text has the same ids on both sides.

        Names of special tokens, chat templates and rows of padding may differ; special tokens that only one has may too.
        """
        if self is other:
            return True
        mine, theirs = self.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        if any(theirs.get(token, number) != number for token, number in mine.items()):
            return False
        extra = {mine[t] for t in mine.keys() - theirs.keys()} | {theirs[t] for t in theirs.keys() - mine.keys()}
        return extra <= (self.specials | other.specials) and self._way == other._way

    def difference(self, other: Tokens, names: tuple[str, str] = ("teacher", "student")) -> str:
        """`teacher and student split text differently (151,665 and 49,152 tokens, 31% shared)`, or "" if they do not.

        Shared: tokens of both, as a share of the greater vocabulary; compared as bytes, so that `Ġthe` is `▁the`.
        """
        if self.same_as(other):
            return ""
        mine, theirs = ({piece for piece in one.pieces if piece} for one in (self, other))
        shared = len(mine & theirs) / max(len(mine), len(theirs), 1)
        return (
            f"{names[0]} and {names[1]} split text differently ({self.size:,} and {other.size:,} tokens, "
            f"{shared:.0%} shared)"
        )

    def render(self, messages: Sequence[Mapping[str, Any]], *, ask: bool = False) -> str:
        """A chat as text by the chat template; with `ask` up to where the assistant begins to answer.

        Raises:
            RecipeError: the template refuses the chat, in its own words.
        """
        return self.rendered(messages, ask)[0]

    def rendered(self, messages: Sequence[Mapping[str, Any]], ask: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the parts of it that the template says the model writes (begin, end in characters)."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            found: Any = render_jinja_template(
                [[dict(message) for message in messages]],
                chat_template=self.template,
                return_assistant_tokens_mask=self.marks_answers,
                add_generation_prompt=ask,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # templates are programs: they raise whatever they like
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise RecipeError(
                f"The chat template of {self.place or 'the tokenizer'} refuses a chat of the roles [{roles}]: "
                f"{_first_line(error)}"
            ) from error
        texts, marked = found
        return texts[0], [(int(begin), int(end)) for begin, end in (marked[0] if marked else [])]

    def _after_answers(self) -> int | None:
        """The special token that the template writes right after an answer."""
        try:
            text = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}])
        except RecipeError:  # a template for other chats than these; its end is then the tokenizer's
            return None
        after = text.rpartition(_PROBE)[2].lstrip()
        ids = self.encode(after)
        return ids[0] if ids and ids[0] in self.specials and after.startswith(self.decode(ids[:1])) else None


def bytes_before(text: str) -> Int64[np.ndarray, "characters_and_one"]:
    """How many UTF-8 bytes stand before each character of a text, and (last) in all."""
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(width)])


def _space_in_front(spelt: bytes, data: bytes) -> int | None:
    """0 where tokens spell just these bytes, 1 where a space is before them, else None."""
    return 0 if spelt == data else 1 if spelt == b" " + data else None


def whole_characters(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON may hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")
    return text


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]
