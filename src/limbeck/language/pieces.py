"""What tokens spell: the bytes of every token of a tokenizer, and where in a text's bytes each token ends.

Any tokenizer of transformers: byte-level BPE (GPT-2's alphabet), SentencePiece or Metaspace with and without a space in
front, byte fallback (`<0x0A>`), WordPiece (`##ing`), end-of-word suffixes (`</w>`), whole words, plain bytes (ByT5).
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Int64

from limbeck.errors import RecipeError

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_THROWS_SPACE_AWAY = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def pieces(tokenizer: Any) -> list[bytes]:
    """The bytes of every token, by id; b"" for ids that stand for no token and for special tokens (also the unknown one).

    A token that begins a word brings the space in front of it: `▁the`, `Ġthe` and WordPiece's `the` are all b" the". So
    the bytes of a text's tokens, joined, are the text's own, perhaps with a space in front, wherever the tokenizer
    changes nothing (no lower case, no NFKC, no white space thrown away). A token may be part of a character.
    """
    return _of(tokenizer).pieces


def specials(tokenizer: Any) -> set[int]:
    """The ids of tokens that stand for no text: those named special, and the unknown token."""
    return _of(tokenizer).specials


def spans(tokenizer: Any, ids: Sequence[int], text: str) -> Int64[np.ndarray, "tokens"]:
    """Where in `text.encode()` each of the tokens `ids` of that text ends: an offset in bytes per token, never falling.

    Offsets count the ORIGINAL text's bytes, whatever the tokenizer makes of it (lower case, NFKC, accents cut off, white
    space thrown away). The bytes from one token's end to the next one's end belong to the latter. White space that was
    thrown away belongs to the token after it, what was thrown away before any white space (a combining mark that was
    composed or cut off) to the token before it. A token that ends inside a character ends at that byte. Where that cannot
    be known (a composed character written as bytes), or where several tokens stand for one character, they all have that
    character's end: equal ends are one thing. -1: the token stands for none of the text (beginning, end, padding). Special
    tokens that the text writes out end where they end there; others may stand before and after. The last tokens may be
    missing (a text that was cut).

    The ids need not be those that the tokenizer itself would choose (a model may have sampled them), as long as their
    bytes, joined, are the text's, or become it where bytes that are no UTF-8 are replaced by U+FFFD. Other ids must be
    what the tokenizer gives for the text.

    Raises:
        RecipeError: the ids are not a tokenisation of the text.
    """
    numbers = np.asarray(ids, dtype=np.int64).reshape(-1)
    known = _of(tokenizer)
    table, apart = known.pieces, known.specials
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(table)):
        raise RecipeError(
            f"token ids from {numbers.min()} to {numbers.max()}; the tokenizer has 0 to {len(table) - 1}."
        )
    data = text.encode("utf-8", errors="surrogatepass")
    spelt = [table[i] for i in numbers]
    silent = np.array([int(i) in apart and not spelt[at] for at, i in enumerate(numbers)], dtype=bool)
    ends = None
    if not known.suffixed and getattr(tokenizer, "unk_token_id", None) not in numbers:  # that one does stand for text
        ends = _by_pieces(spelt, data)
        if ends is None and silent.any() and (ends := _by_walking(known, numbers.tolist(), data)) is not None:
            return ends
        if ends is None and _REPLACEMENT in data:
            ends = _by_replacement(spelt, data, whole=True)
        if ends is not None:
            return np.where(silent, -1, ends)
    ends = _by_offsets(known, numbers.tolist(), text, data)
    if ends is not None:
        return ends
    ends = _by_replacement(spelt, data, whole=False)
    if ends is None:
        raise RecipeError(
            f"{len(numbers)} token ids and a text of {len(data)} bytes ({text[:40]!r}...) do not belong together: the ids "
            f"are not what this {type(tokenizer).__name__} makes of the text. Give the text from which the ids were made."
        )
    return np.where(silent, -1, ends)


class _Known:
    """What is worked out once per tokenizer."""

    def __init__(self, tokenizer: Any):
        self.count = len(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.specials = set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.parts: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
        spell = _Speller(tokenizer, self.parts, self.specials)
        self.suffixed = spell.suffix is not None  # then pieces have their space behind, and no end is where it seems
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, number in vocabulary.items():
            self.pieces[number] = spell(token, number)

        self.written = {vocabulary[token]: token.encode() for token in vocabulary if vocabulary[token] in self.specials}

    @cached_property
    def encoder(self) -> Any:
        """The tokenizer without what it does after and around encoding: templates, trimmed offsets, padding, cutting."""
        if not self.parts:
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_str(
            json.dumps({**self.parts, "post_processor": None, "truncation": None, "padding": None})
        )


def _of(tokenizer: Any) -> _Known:
    known = _known.get(tokenizer)
    if known is None or known.count != len(tokenizer):  # tokens may have been added since
        known = _known[tokenizer] = _Known(tokenizer)
    return known


class _Speller:
    """From a token's name to its bytes, by what the tokenizer's own file says of its parts."""

    def __init__(self, tokenizer: Any, parts: dict[str, Any], special: set[int]):
        model = parts.get("model", {})
        kinds = [part for name in ("normalizer", "pre_tokenizer", "decoder") for part in _parts(parts.get(name) or {})]
        named = {part["type"] for part in kinds}
        vocabulary = tokenizer.get_vocab()
        if not parts:  # no file to read: judge by the tokens
            named |= (
                {"ByteLevel"} if "Ġ" in vocabulary else {"Metaspace"} if any("▁" in t for t in vocabulary) else set()
            )
        self.bytes = getattr(tokenizer, "_utf_vocab_size", None) == 256  # ByT5
        self.alphabet = byte_alphabet() if "ByteLevel" in named else None
        self.fallback = bool(model.get("byte_fallback")) or "ByteFallback" in named or "<0x0A>" in vocabulary
        self.marks: set[str] = {part["replacement"] for part in kinds if part.get("replacement")}
        self.marks |= {
            part["pattern"]["String"]
            for part in kinds
            if part["type"] == "Replace" and part.get("content") == " " and "String" in part.get("pattern", {})
        } - {" "}
        if "Metaspace" in named and not self.marks:
            self.marks = {"▁"}
        self.suffix = model.get("end_of_word_suffix") or next(
            (p.get("suffix") for p in kinds if p["type"] == "BPEDecoder"), None
        )
        self.prefix = model.get("continuing_subword_prefix") or None
        parting = {part["type"] for part in _parts(parts.get("pre_tokenizer") or {})}
        removes = any(part.get("behavior") == "Removed" for part in kinds)
        spaced = bool(parting & _THROWS_SPACE_AWAY) or removes or "WordPiece" in named
        words = model.get("type") in ("WordPiece", "WordLevel") or self.prefix is not None
        self.spaced = spaced and words and not self.marks and self.alphabet is None
        self.added = {n: token.content for n, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self.special = special

    def __call__(self, token: str, number: int) -> bytes:
        if self.fallback and (found := _FALLBACK.match(token)):
            return bytes([int(found[1], 16)])
        if number in self.special:
            return b""
        if number in self.added:
            return self.added[number].encode()  # found in the text as it stands, before anything is made of it
        if self.bytes:
            return token.encode("latin-1")
        end = b""
        if self.suffix and token.endswith(self.suffix):
            token, end = token.removesuffix(self.suffix), b" "
        if self.alphabet is not None:
            if all(letter in self.alphabet for letter in token):
                return bytes(self.alphabet[letter] for letter in token) + end
            return token.encode() + end
        for mark in self.marks:
            token = token.replace(mark, " ")
        if self.prefix and token.startswith(self.prefix):
            return token.removeprefix(self.prefix).encode() + end
        return (b" " if self.spaced else b"") + token.encode("utf-8", errors="surrogatepass") + end


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: those that print stand for themselves, the others follow from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(prints)]
    return {chr(byte): byte for byte in prints} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _parts(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A part of a tokenizer's file, or the parts of a sequence of them."""
    inner = next((part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part), None)
    if inner is not None:
        for one in inner:
            yield from _parts(one)
    elif part:
        yield part


def _by_pieces(spelt: list[bytes], data: bytes) -> Int64[np.ndarray, "tokens"] | None:
    """Ends where the pieces, joined, are the text, perhaps after a space of their own."""
    joined = b"".join(spelt)
    if joined != data and joined != b" " + data:
        return None
    ends = np.cumsum([len(piece) for piece in spelt], dtype=np.int64)
    return np.maximum(ends - (len(joined) - len(data)), 0)


def _by_walking(known: _Known, ids: list[int], data: bytes) -> Int64[np.ndarray, "tokens"] | None:
    """Ends where special tokens are written out in the text; after one a piece may have a space of its own."""
    place, fresh, ends = 0, True, []
    for number in ids:
        piece = known.pieces[number]
        special = number in known.specials and not piece
        piece = known.written[number] if special else piece
        if special and not data.startswith(piece, place):
            ends.append(-1)
            continue
        if not data.startswith(piece, place) and fresh and piece.startswith(b" "):
            piece = piece[1:]
        if not data.startswith(piece, place):
            return None
        place, fresh = place + len(piece), special
        ends.append(place)
    return np.array(ends, dtype=np.int64) if place == len(data) else None


def _by_offsets(known: _Known, ids: list[int], text: str, data: bytes) -> Int64[np.ndarray, "tokens"] | None:
    """Ends by the tokenizer's own account of which characters of the text a token stands for."""
    if known.encoder is None:
        return None
    encoding = known.encoder.encode(text, add_special_tokens=False)
    found, apart = encoding.ids, known.specials
    front = next((at for at, number in enumerate(ids) if number not in apart), len(ids))
    for start in range(front + 1):  # special tokens before the text; the text itself may begin with one
        count = min(len(found), len(ids) - start)
        if found[:count] == ids[start : start + count] and all(i in apart for i in ids[start + count :]):
            break
    else:
        return None
    ends = np.full(len(ids), -1, dtype=np.int64)
    if count == 0:
        return ends
    offsets = np.array(encoding.offsets, dtype=np.int64)
    begins, stops = offsets[:, 0], np.maximum.accumulate(offsets[:, 1])
    follows = np.append(begins[1:], len(text))
    for at in np.flatnonzero(follows > stops):  # what no token stands for: marks that were composed or cut off, spaces
        gap = text[stops[at] : follows[at]]
        stops[at] += next((length for length, letter in enumerate(gap) if letter.isspace()), len(gap))
    for at in np.flatnonzero(follows < stops)[::-1]:  # the next token stands for the rest of this one's last character
        stops[at] = stops[at + 1]
    points = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    stops = np.concatenate([[0], np.cumsum(width)])[stops]
    ends[start : start + count] = _inside_characters(stops, [known.pieces[i] for i in found], data)[:count]
    return ends


def _inside_characters(
    stops: Int64[np.ndarray, "tokens"], spelt: list[bytes], data: bytes
) -> Int64[np.ndarray, "tokens"]:
    """Runs of tokens with one end, taken apart where their pieces are just the bytes between the ends."""
    edges = np.flatnonzero(np.diff(stops, prepend=-1, append=-1))
    for first, after in pairwise(edges):
        if after - first > 1:
            before = int(stops[first - 1]) if first else 0
            inner = _by_pieces(spelt[first:after], data[before : int(stops[first])])
            if inner is not None:
                stops[first:after] = before + inner
    return stops


class _Replacing(threading.local):
    """The places at which a decoder met bytes that are no UTF-8."""

    found: list[tuple[int, int]]


_replacing = _Replacing()


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    _replacing.found.append((error.start, error.end))
    return "\N{REPLACEMENT CHARACTER}", error.end


codecs.register_error("limbeck.replace", _replace)


def _by_replacement(spelt: list[bytes], data: bytes, *, whole: bool) -> Int64[np.ndarray, "tokens"] | None:
    """Ends where the pieces, joined and decoded with U+FFFD for what is no UTF-8, are the text (or begin it)."""
    joined = b"".join(spelt)
    _replacing.found = []
    decoded = joined.decode("utf-8", errors="limbeck.replace").encode()
    shift = next((n for n in (0, 1) if data.startswith(decoded[n:]) and decoded[:n] == b" " * n), None)
    if shift is None or (whole and len(decoded) - shift != len(data)):
        return None
    place = np.ones(len(joined), dtype=np.int64)
    for start, end in _replacing.found:  # all of what was replaced has one end
        place[start] = len(_REPLACEMENT)
        place[start + 1 : end] = 0
    place = np.concatenate([[0], np.cumsum(place)])
    ends = np.cumsum([len(piece) for piece in spelt], dtype=np.int64)
    return np.maximum(place[ends] - shift, 0)
