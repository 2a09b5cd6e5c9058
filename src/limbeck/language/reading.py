"""From rows of text to rows of tokens: what a language task learns from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from limbeck.data.tensors import Data, Split
from limbeck.errors import RecipeError
from limbeck.language import beside
from limbeck.language.chats import Encoded, Sample, answered, chat, checked, encode, plain
from limbeck.language.packing import pack as packed_rows
from limbeck.language.split import Side, TokenSplit, described
from limbeck.language.store import BUDGET, Store, Writer, cache_folder
from limbeck.language.tokens import Tokens, bytes_before

Reading: TypeAlias = Literal["chat", "text"]
Document: TypeAlias = dict[str, Any]  # what the store keeps of it, by name
BLOCK = 64  # rows tokenised at once, but for
LETTERS = 2**20  # characters at once, of which a tokenizer makes about a hundred times the memory
VERSION = 1  # of what stands in a store: other numbers are other tokens
FORMS = (("messages",), ("prompt", "completion"), ("text",))
_TOLD = {
    "cut": "{n} of {rows} rows are longer than {length:,} tokens and were cut there.",
    "chunks": "{n} of {rows} texts are longer than {length:,} tokens and became several rows.",
    "long": "{n} of {rows} rows were left out: their prompts alone fill {length:,} tokens.",
    "empty": "{n} of {rows} rows were left out: nothing stands in their {what}.",
    "silent": "{n} of {rows} rows have no answer that counts; they stay, and nothing is learnt from them.",
    "endless": "{n} of {rows} chats end without an end token in the chat template, so the student does not learn to stop.",
}


def read(
    data: Data,
    student: Tokens,
    teacher: Tokens | None = None,
    *,
    length: int | None = None,
    pack: bool = False,
    task: Reading,
    budget: int = BUDGET,
) -> Data:
    """Rows of text as tokens, once and for all: the data of a language task. The columns are those of `TokenSplit`.

    Rows have `messages` (a list of {role, content}: the assistant's count, see `chats.chat`), or `prompt` and
    `completion` (the completion counts, and the end token after it; lists of messages, or, for a chat with a chat
    template, words of user and assistant), or `text` (every token counts, and the end token; what is longer than `length`
    becomes several rows, which overlap by one token so that each token counts once).

    Args:
        data: rows of text, as `load_data` gives them.
        student: its tokenizer makes the tokens.
        teacher: its tokenizer; where it splits text differently, its own tokens stand beside the student's.
        length: the most tokens of a row (of the student's). Chats and answers are cut there; a row whose prompt alone
            is that long is left out.
        pack: put short rows together into rows of `length`.
        task: `chat` or `text`.
        budget: bytes of tokens kept in memory; more go to files in the cache folder (`$LIMBECK_CACHE`, else
            `~/.cache/limbeck`), from which batches are read.

    Raises:
        RecipeError: no such columns, a row that is not of their form, a chat that the template refuses, or no row left.
    """
    if length is not None and length < 2:
        raise RecipeError(f"length is {length}; a row needs 2 tokens at least: one that predicts, one to be predicted.")
    if pack and length is None:
        raise RecipeError("pack puts rows together into rows of `length` tokens: say length=1024, or how many fit.")
    if teacher is not None and student.same_as(teacher):
        teacher = None
    form = _form(data)
    reader = _Reader(form, student, teacher, length, task)
    splits: dict[str, Split] = {}
    digest = hashlib.sha256(repr((reader.mark(), pack)).encode())
    told: Counter[str] = Counter()
    first, rows = 0, 0
    for name, split in data.splits.items():
        if not len(split):
            continue
        mark = reader.fingerprint(split)
        digest.update(f"{name}/{mark}".encode())
        store, counts = reader.store(split, mark, budget)
        told += counts
        rows += len(split)
        if not len(store):
            raise RecipeError(
                f"No row of the split '{name}' is left: {_sentences(counts, len(split), length, form)} "
                "Give a greater length, or other data."
            )
        splits[name] = made = _split(store, split, student, teacher, length, pack, first)
        first = max(first, int(made.numbers.max()) + 1)
    sides = {"": student.place or "the student"} | ({"teacher_": teacher.place or "the teacher"} if teacher else {})
    return Data(
        splits,
        described(sides, pack, length, teacher is not None),
        {},
        digest.hexdigest(),
        data.source,
        [*data.notices, *reader.notices(), *filter(None, [_sentences(told, rows, length, form)])],
    )


def _form(data: Data) -> tuple[str, ...]:
    """The columns that hold the text."""
    columns = list(data.columns)
    if not columns:
        first = next((split for split in data.splits.values() if len(split)), None)
        columns = [] if first is None else list(first.__getitems__([0]))
    for form in FORMS:
        if set(form) <= set(columns):
            return form
    raise RecipeError(
        f"{data.source or 'The data'} have the columns {', '.join(columns) or '(none)'}; a language task reads `messages`, "
        "or `prompt` and `completion`, or `text`. Rename the column that holds the text."
    )


class _Piece(NamedTuple):
    """Tokens `start` to `stop` of a sample; those before `fresh` only lead up to what is new in it."""

    start: int
    stop: int
    fresh: int


@dataclass
class _Reader:
    """Makes tokens of rows of one form."""

    form: tuple[str, ...]
    student: Tokens
    teacher: Tokens | None
    length: int | None
    task: Reading

    def mark(self) -> tuple[Any, ...]:
        """All that decides which tokens a row becomes."""
        other = self.teacher.fingerprint if self.teacher else ""
        return (VERSION, self.form, self.student.fingerprint, other, self.length, self.task)

    def notices(self) -> list[str]:
        """What a person should know of how rows were read."""
        if self.form == ("messages",) and not self.student.has_template:
            return [
                "The student's tokenizer has no chat template; chats are written as 'User:', 'Assistant:' and what they "
                "say, each on lines of its own, with the end token after an answer."
            ]
        if self.form[0] == "prompt" and self._dressed(self.student):
            return ["Prompts and completions are written with the student's chat template, as user and assistant."]
        return []

    def _dressed(self, tokens: Tokens) -> bool:
        return self.task == "chat" and tokens.has_template

    def fingerprint(self, split: Split) -> str:
        """A hash of all texts, and of how they are read. The texts are read for it: a Dataset's own hash may not know them."""
        digest = hashlib.sha256(repr(self.mark()).encode())
        for block in _blocks(split, self.form):
            for row in block:
                digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def store(self, split: Split, mark: str, budget: int) -> tuple[Store, Counter[str]]:
        """The tokens of a split, and how many rows were cut, left out and so on."""
        kinds = {"ids": "int32", "counted": "uint8", "bytes": "int64", "row": "int64"}
        kinds |= beside.KINDS if self.teacher else {}
        writer = Writer(kinds, cache_folder() / "tokens" / mark[:32], budget)
        if (kept := writer.found()) is not None:
            return kept, Counter(kept.facts)
        counts: Counter[str] = Counter()
        try:
            row = 0
            for block in _blocks(split, self.form):
                for documents, facts in self.block(block, split.ids[row : row + len(block)]):
                    for document in documents:
                        writer.add({**document, "row": [row]})
                    counts.update(facts)
                    row += 1
            return writer.finish(counts), counts
        except BaseException:
            writer.give_up()
            raise

    def block(
        self, rows: Sequence[Mapping[str, Any]], ids: Sequence[str]
    ) -> Iterator[tuple[list[Document], list[str]]]:
        """For each row: the documents that it becomes, and what there is to tell about it."""
        samples = self.samples(self.student, rows, ids)
        encoded = encode(self.student, samples)
        parts = [self.pieces(*both) for both in zip(samples, encoded, strict=True)]
        others: list[Sample] = []
        if self.teacher is not None and self.form != ("text",):
            others = self.samples(self.teacher, rows, ids)
        theirs = encode(self.teacher, others) if self.teacher else []
        for row, (sample, code, (pieces, facts)) in enumerate(zip(samples, encoded, parts, strict=True)):
            documents = [_document(code, piece) for piece in pieces]
            for document, piece in zip(documents, pieces, strict=True):
                if self.teacher is not None:
                    mine = beside.Half(self.student, sample, code, _kept(code, piece))
                    if others:
                        kept = _kept(theirs[row], _Piece(0, len(theirs[row].ids), 0))
                        document |= beside.beside(
                            mine, beside.Half(self.teacher, others[row], theirs[row], kept), piece.stop
                        )
                    else:
                        document |= self.chunk(mine, piece)
            yield documents, facts

    def samples(self, tokens: Tokens, rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> list[Sample]:
        """Rows as texts with the parts that count."""
        found = []
        for row, id in zip(rows, ids, strict=True):
            try:
                found.append(self.sample(tokens, row))
            except RecipeError as error:
                raise RecipeError(f"Row {id}: {error}") from error
        return found

    def sample(self, tokens: Tokens, row: Mapping[str, Any]) -> Sample:
        if self.form == ("text",):
            return plain(row["text"])
        if self.form == ("messages",):
            return chat(tokens, _parsed(row["messages"]))
        prompt, completion = _parsed(row["prompt"]), _parsed(row["completion"])
        if isinstance(prompt, list) or isinstance(completion, list):
            begin = checked(prompt) if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            rest = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
            return chat(tokens, [*begin, *rest], first=len(begin))
        if self._dressed(tokens):
            said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            return chat(tokens, said)
        return answered(prompt, completion)

    def pieces(self, sample: Sample, encoded: Encoded) -> tuple[list[_Piece], list[str]]:
        """What a row becomes: nothing, one document, or the chunks of a long text."""
        size = len(encoded.ids)
        if sample.empty:
            return [], ["empty"]
        facts = ["endless"] if sample.endless else []
        facts += [] if encoded.counted[1:].any() else ["silent"]
        if self.length is None or size <= self.length:
            return [_Piece(0, size, 0)], facts
        if self.form == ("text",):
            return _chunks(sample, encoded, self.length, whole_letters=self.teacher is not None), [*facts, "chunks"]
        if "silent" not in facts and not encoded.counted[1 : self.length].any():
            return [], ["long"]
        return [_Piece(0, self.length, 0)], [*facts, "cut"]

    def chunk(self, mine: beside.Half, piece: _Piece) -> Document:
        """The teacher's tokens of the text of a chunk."""
        code = mine.encoded
        begin, end = int(code.ends[piece.start - 1]) if piece.start else 0, int(code.ends[piece.stop - 1])
        text = mine.sample.text.encode()[begin:end].decode(errors="replace")
        sample = Sample(text, [(0, len(text))], front=piece.start == 0, back=piece.stop == len(code.ids))
        cut = slice(piece.start, piece.stop)
        part = Encoded(code.ids[cut], code.counted[cut], code.bytes[cut], code.ends[cut] - begin)
        assert self.teacher is not None
        (their,) = encode(self.teacher, [sample])
        theirs = beside.Half(self.teacher, sample, their, _kept(their, _Piece(0, len(their.ids), 0)))
        return beside.beside(beside.Half(self.student, sample, part, mine.kept[cut]), theirs, len(part.ids))


def _chunks(sample: Sample, encoded: Encoded, length: int, whole_letters: bool) -> list[_Piece]:
    """Pieces of at most `length` tokens, each led up to by the last token of the one before: so every token counts once.

    `whole_letters`: pieces are of whole characters, since a teacher with another tokenizer reads them too.
    """
    size = len(encoded.ids)
    fine = np.ones(size + 1, bool)
    if whole_letters:
        letter = np.isin(encoded.ends, bytes_before(sample.text))
        fine[1:size] = letter[:-1] & (np.diff(encoded.ends) > 0)
    places = np.flatnonzero(fine)
    pieces: list[_Piece] = []
    done = 0
    while done < size:
        start = int(places[max(0, int(np.searchsorted(places, done)) - 1)])
        stop = int(places[np.searchsorted(places, min(start + length, size), side="right") - 1])
        if stop <= done:  # a letter of more tokens than a row takes
            start, stop = max(0, done - 1), min(max(0, done - 1) + length, size)
        pieces.append(_Piece(start, stop, done))
        done = stop
    return pieces


def _kept(encoded: Encoded, piece: _Piece) -> Bool[np.ndarray, "tokens"]:
    """The tokens that have to be predicted in this piece: the first of a row is predicted by nothing."""
    at = np.arange(len(encoded.ids))
    return encoded.counted & (at > piece.start) & (at >= piece.fresh) & (at < piece.stop)


def _document(encoded: Encoded, piece: _Piece) -> Document:
    kept = _kept(encoded, piece)
    cut = slice(piece.start, piece.stop)
    return {"ids": encoded.ids[cut], "counted": kept[cut], "bytes": [int(encoded.bytes[kept].sum())]}


def _blocks(split: Split, form: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(split), BLOCK):
        batch = split.__getitems__(list(range(start, min(start + BLOCK, len(split)))))
        wrong = [name for name in form if isinstance(batch[name], Tensor)]
        if wrong:
            raise RecipeError(
                f"The column '{wrong[0]}' was read as numbers, not as text. Say data.columns: {{{wrong[0]}: text}}."
            )
        block: list[dict[str, Any]] = []
        size = 0
        for row in zip(*(batch[name] for name in form), strict=True):
            length = sum(len(cell if isinstance(cell, str) else repr(cell)) for cell in row)
            if block and size + length > LETTERS:
                yield block
                block, size = [], 0
            block.append(dict(zip(form, row, strict=True)))
            size += length
        yield block


def _parsed(value: Any) -> Any:
    """Messages, also where a CSV file holds them as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _split(
    store: Store, raw: Split, student: Tokens, teacher: Tokens | None, length: int | None, pack: bool, first: int
) -> TokenSplit:
    """Rows of documents: as they come, or packed. Ids are the raw rows' where each became one row at most."""
    origin = store.arrays["row"]
    sides = [Side("", student.pad)] + ([Side("teacher_", teacher.pad)] if teacher else [])
    if pack and length is not None:
        bins = packed_rows(store.lengths("ids").tolist(), length)
        flat = np.array([one for row in bins for one in row], np.int64)
        ends = np.cumsum([0, *map(len, bins)])
        names = [_name([raw.ids[origin[one]] for one in row]) for row in bins]
        return TokenSplit(store, (flat, ends), names, np.arange(first, first + len(bins)), sides, True)
    alone = (np.arange(len(store)), np.arange(len(store) + 1))
    seen: Counter[int] = Counter()
    many = len(np.unique(origin)) < len(origin)
    names = []
    for row in origin.tolist():
        seen[row] += 1
        names.append(f"{raw.ids[row]}#{seen[row]}" if many else raw.ids[row])
    return TokenSplit(store, alone, names, np.arange(first, first + len(names)), sides, False)


def _name(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else f"{ids[0]}+{len(ids) - 1}"


def _sentences(told: Mapping[str, int], rows: int, length: int | None, form: Sequence[str]) -> str:
    what = {"messages": "answers", "completion": "completions", "text": "texts"}[form[-1]]
    return " ".join(
        text.format(n=f"{told[fact]:,}", rows=f"{rows:,}", length=length or 0, what=what)
        for fact, text in _TOLD.items()
        if told.get(fact)
    )
