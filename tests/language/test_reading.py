"""From rows of text to batches of tokens."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_tokenizers import CHATML_MARKED, LLAMA, MISTRAL, byte_bpe, bytes_only, metaspace_bpe, wordpiece
from torch import Tensor

from limbeck.data.load import load_data
from limbeck.data.loader import Loader
from limbeck.data.loader import read as in_order
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.language.chats import chat, encode
from limbeck.language.reading import read
from limbeck.language.split import TokenSplit
from limbeck.language.tokens import Tokens

Rows = Sequence[dict[str, Any]]


class Listed:
    """Rows of a list as a split."""

    def __init__(self, rows: Rows) -> None:
        self.rows = list(rows)
        self.ids = [f"row {n}" for n in range(len(rows))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        return {name: [self.rows[i][name] for i in indices] for name in self.rows[0]} | {"id": torch.tensor(indices)}


def data_of(rows: Rows, **more: Rows) -> Data:
    splits = {"train": Listed(rows), **{name: Listed(other) for name, other in more.items()}}
    return Data(splits, dict.fromkeys(rows[0], "text"), fingerprint="raw", source="rows", notices=["as it was"])


def all_of(data: Data, split: str = "train") -> dict[str, Tensor]:
    return data[split].__getitems__(list(range(len(data[split]))))


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reading")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tokens:
    return Tokens.load(byte_bpe(folder / "bpe", template=CHATML_MARKED))


@pytest.fixture(scope="module")
def others(folder: Path) -> dict[str, Tokens]:
    return {
        "bytes": Tokens.load(bytes_only(folder / "bytes", template=LLAMA)),
        "metaspace": Tokens.load(metaspace_bpe(folder / "metaspace", template=MISTRAL)),
        "wordpiece": Tokens.load(wordpiece(folder / "wordpiece")),
    }


def columns_hold(batch: dict[str, Tensor], pad: int) -> None:
    """What the columns of every batch of tokens promise."""
    ids, mask, target = batch["input_ids"], batch["attention_mask"], batch["target"]
    assert ids.dtype == mask.dtype == target.dtype == batch["answer_bytes"].dtype == batch["id"].dtype == torch.int64
    assert ids.shape == mask.shape == target.shape == batch["answer"].shape
    assert mask.sum(1).max() == ids.shape[1]
    assert (mask == (torch.arange(ids.shape[1]) < mask.sum(1, keepdim=True))).all()
    assert (ids[mask == 0] == pad).all()
    assert torch.equal(batch["answer"], target != -100)
    assert (target[:, -1] == -100).all()
    assert torch.equal(target[:, :-1][batch["answer"][:, :-1]], ids[:, 1:][batch["answer"][:, :-1]])
    assert (mask[:, 1:][batch["answer"][:, :-1]] == 1).all()


def test_chats(tokens: Tokens) -> None:
    rows = [talk("hello?", "yes 🙂"), talk("who are you", "I am a small model")]
    data = read(data_of(rows, test=rows[:1]), tokens, task="chat")
    batch = all_of(data)
    columns_hold(batch, tokens.pad)
    assert "segment" not in batch
    for row, target, answer in zip(rows, batch["target"], batch["answer"], strict=True):
        assert tokens.decode(target[answer].tolist()) == row["messages"][1]["content"] + "<|im_end|>"
        assert tokens.decode(batch["input_ids"][0][: batch["attention_mask"][0].sum()].tolist()) == tokens.render(
            rows[0]["messages"]
        )
    assert batch["answer_bytes"].tolist() == [len("yes 🙂".encode()), len("I am a small model")]
    assert data["train"].ids == ["row 0", "row 1"]
    assert torch.cat([batch["id"], all_of(data, "test")["id"]]).tolist() == [0, 1, 2]
    assert data.notices == ["as it was"]
    assert data.labels == {}
    assert set(data.columns) == set(batch) - {"id"}
    one = data["train"][1]
    assert one["input_ids"].shape == (int(batch["attention_mask"][1].sum()),)
    with pytest.raises(IndexError):
        data["train"][2]


def test_every_order_of_rows_and_workers(tokens: Tokens) -> None:
    rows = [talk(f"{n}?" * n, "yes" * (n + 1)) for n in range(7)]
    data = read(data_of(rows), tokens, task="chat")
    whole = all_of(data)
    one = data["train"].__getitems__([5, 0, 5])
    assert one["id"].tolist() == [5, 0, 5]
    assert one["input_ids"].shape[1] == whole["attention_mask"][5].sum()
    assert torch.equal(one["target"][0], whole["target"][5][: one["target"].shape[1]])
    found = list(Loader(data["train"], 3, seed=0, shuffle=True).epoch(0))
    assert sorted(torch.cat([batch["id"] for batch in found]).tolist()) == list(range(7))
    plan = [[1, 2], [6, 0, 3]]
    for here, there in zip(in_order(data["train"], plan), in_order(data["train"], plan, workers=1), strict=True):
        assert all(torch.equal(here[name], there[name]) for name in here)
    again = pickle.loads(pickle.dumps(data["train"]))
    assert torch.equal(again.__getitems__([3])["input_ids"], data["train"].__getitems__([3])["input_ids"])


def test_prompts_and_completions(tokens: Tokens) -> None:
    rows = [{"prompt": "2 + 2 =", "completion": " 4"}, {"prompt": "", "completion": "hello"}]
    batch = all_of(read(data_of(rows), tokens, task="text"))
    columns_hold(batch, tokens.pad)
    said = [tokens.decode(t[a].tolist()) for t, a in zip(batch["target"], batch["answer"], strict=True)]
    assert said[0] == " 4</s>"
    first = tokens.pieces[tokens.encode("hello")[0]].decode()
    assert said[1] == "hello".removeprefix(first) + "</s>"  # nothing comes before the first token
    assert batch["answer_bytes"].tolist() == [2, 5 - len(first)]


def test_prompts_in_a_chat(tokens: Tokens, others: dict[str, Tokens]) -> None:
    """With a chat template they are put into it; lists of messages are chats, and only the completion counts."""
    rows = [{"prompt": "2 + 2?", "completion": "4"}]
    data = read(data_of(rows), tokens, task="chat")
    batch, expected = all_of(data), all_of(read(data_of([talk("2 + 2?", "4")]), tokens, task="chat"))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert "with the student's chat template" in data.notices[-1]
    lists = [
        {
            "prompt": talk("a", "b")["messages"] + talk("2?", "")["messages"][:1],
            "completion": talk("", "4")["messages"][1:],
        }
    ]
    for task in ("chat", "text"):
        batch = all_of(read(data_of(lists), tokens, task=task))  # type: ignore[arg-type]
        assert tokens.decode(batch["target"][batch["answer"]].tolist()) == "4<|im_end|>"
        assert tokens.decode(batch["input_ids"][0].tolist()).count("<|im_end|>") == 4


def test_chats_without_a_template(folder: Path) -> None:
    tokens = Tokens.load(byte_bpe(folder / "plain", template=None))
    data = read(data_of([talk("hello?", "yes")]), tokens, task="chat")
    batch = all_of(data)
    assert tokens.decode(batch["target"][batch["answer"]].tolist()) == "yes</s>"
    assert tokens.decode(batch["input_ids"][0].tolist()) == "<s>User:\nhello?\n\nAssistant:\nyes</s>\n\n"
    assert "has no chat template; chats are written as 'User:'" in data.notices[-1]
    batch = all_of(read(data_of([{"prompt": "a", "completion": "b"}]), tokens, task="chat"))
    assert tokens.decode(batch["input_ids"][0].tolist()) == "ab</s>"


@settings(max_examples=15)
@given(
    texts=st.lists(st.text(alphabet="ab é🙂\n", min_size=1, max_size=40), min_size=1, max_size=4),
    length=st.integers(2, 12),
)
def test_long_texts_are_rows_in_which_every_token_counts_once(tokens: Tokens, texts: list[str], length: int) -> None:
    data = read(data_of([{"text": text} for text in texts]), tokens, task="text", length=length)
    batch = all_of(data)
    columns_hold(batch, tokens.pad)
    assert batch["input_ids"].shape[1] <= length
    whole = [[*tokens.encode(text), tokens.eos[0]] for text in texts]
    targets = batch["target"][batch["answer"]].tolist()
    assert targets == [token for ids in whole for token in ids[1:]]
    firsts = sum(len(tokens.pieces[ids[0]]) for ids in whole)
    assert int(batch["answer_bytes"].sum()) == sum(len(text.encode()) for text in texts) - firsts
    assert len(set(data["train"].ids)) == len(data["train"]) == len(set(batch["id"].tolist()))
    assert batch["id"].tolist() == list(range(len(batch["id"])))


def test_rows_that_are_cut_or_left_out(tokens: Tokens) -> None:
    rows = [
        talk("hello?", "yes"),
        talk("hello?", "a very long answer " * 20),
        talk("a very long question " * 20, "yes"),
        talk("hello?", ""),
        {"messages": [{"role": "user", "content": "nobody answers"}]},
    ]
    data = read(data_of(rows), tokens, task="chat", length=40)
    batch = all_of(data)
    columns_hold(batch, tokens.pad)
    assert data["train"].ids == ["row 0", "row 1", "row 4"]
    assert batch["attention_mask"].sum(1).tolist()[1] == 40
    said = tokens.decode(batch["target"][1][batch["answer"][1]].tolist())
    assert ("a very long answer " * 20).startswith(said)
    assert batch["answer_bytes"][1] == len(said.encode())
    assert batch["answer"][2].sum() == 0
    assert batch["answer_bytes"][2] == 0
    told = data.notices[-1]
    assert "1 of 5 rows are longer than 40 tokens and were cut there." in told
    assert "1 of 5 rows were left out: their prompts alone fill 40 tokens." in told
    assert "1 of 5 rows were left out: nothing stands in their answers." in told
    assert "1 of 5 rows have no answer that counts; they stay" in told


def test_a_prompt_that_leaves_room_for_one_token(tokens: Tokens) -> None:
    prompt = "hello there"
    size = len(tokens.encode(prompt))
    for length, left in ((size + 1, 1), (size, 0)):
        if left:
            batch = all_of(
                read(data_of([{"prompt": prompt, "completion": " you"}]), tokens, task="text", length=length)
            )
            assert batch["answer"].sum() == left
        else:
            with pytest.raises(
                RecipeError, match=rf"No row of the split 'train' is left: 1 of 1 rows .* fill {length} tokens"
            ):
                read(data_of([{"prompt": prompt, "completion": " you"}]), tokens, task="text", length=length)


def test_nothing_left(tokens: Tokens) -> None:
    with pytest.raises(
        RecipeError, match="No row of the split 'train' is left: 2 of 2 rows were left out: nothing stands in"
    ):
        read(data_of([{"text": ""}, {"text": ""}]), tokens, task="text")
    with pytest.raises(RecipeError, match="No row of the split 'test' is left"):
        read(data_of([{"text": "a"}], test=[{"text": ""}]), tokens, task="text")


def test_a_template_that_writes_no_end_is_told(folder: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokens = Tokens.load(byte_bpe(folder / "endless", template=template))
    data = read(data_of([talk("a", "b")]), tokens, task="chat")
    assert "1 of 1 chats end without an end token" in data.notices[-1]


def test_packed_rows(tokens: Tokens) -> None:
    rows = [talk(f"{n}?", "yes " * n) for n in range(1, 12)]
    alone, data = (
        read(data_of(rows), tokens, task="chat"),
        read(data_of(rows), tokens, task="chat", length=80, pack=True),
    )
    batch, single = all_of(data), all_of(alone)
    columns_hold(batch, tokens.pad)
    assert len(data["train"]) < len(rows)
    assert batch["input_ids"].shape[1] <= 80
    assert torch.equal(batch["segment"] >= 0, batch["attention_mask"] == 1)
    found = {}
    for row in range(len(data["train"])):
        for number in range(int(batch["segment"][row].max()) + 1):
            at = batch["segment"][row] == number
            assert batch["position_ids"][row][at].tolist() == list(range(int(at.sum())))
            assert batch["target"][row][at][-1] == -100  # no document predicts the next one's beginning
            found[tuple(batch["input_ids"][row][at].tolist())] = batch["target"][row][at].tolist()
    expected = {
        tuple(ids[:size].tolist()): target[:size].tolist()
        for ids, target, size in zip(
            single["input_ids"], single["target"], single["attention_mask"].sum(1), strict=True
        )
    }
    assert found == expected
    assert int(batch["answer_bytes"].sum()) == int(single["answer_bytes"].sum())
    assert batch["id"].tolist() == list(range(len(batch["id"])))
    assert all(name.startswith("row ") for name in data["train"].ids)
    assert set(data.columns) == set(batch) - {"id"}


CHATS = [talk("hello?", "yes, naïve 🙂 answers"), talk("Größe?", "42\n\nindeed"), talk("a", "b")]


def spelt(tokens: Tokens, ids: list[int]) -> bytes:
    return b"".join(tokens.pieces[i] for i in ids)


@pytest.mark.parametrize("teacher", ["bytes", "metaspace"])
@pytest.mark.parametrize("pack", [False, True])
def test_a_teacher_with_another_tokenizer(tokens: Tokens, others: dict[str, Tokens], teacher: str, pack: bool) -> None:
    """The same number means the same bytes; all of an answer is in chunks, its end too, where both templates write just it."""
    other = others[teacher]
    data = read(data_of(CHATS), tokens, other, task="chat", length=90 if pack else None, pack=pack)
    batch = all_of(data)
    columns_hold(batch, tokens.pad)
    columns_hold(
        {name.removeprefix("teacher_"): v for name, v in batch.items() if name.startswith("teacher_")}
        | {"answer_bytes": batch["answer_bytes"], "id": batch["id"]},
        other.pad,
    )
    assert set(data.columns) == set(batch) - {"id"}
    assert batch["group"].shape == batch["input_ids"].shape
    assert batch["teacher_group"].shape == batch["teacher_input_ids"].shape
    for row in range(len(data["train"])):
        mine, theirs = batch["group"][row], batch["teacher_group"][row]
        numbers = sorted(set(mine.tolist()) - {-1})
        assert numbers == list(range(len(numbers))) == sorted(set(theirs.tolist()) - {-1})
        for number in numbers:
            ours = batch["target"][row][mine == number].tolist()
            its = batch["teacher_target"][row][theirs == number].tolist()
            assert -100 not in ours + its
            a, b = spelt(tokens, ours), spelt(other, its)
            assert a.strip() == b.strip()  # SentencePiece may put a space before an answer's first word
        if teacher == "bytes":
            assert (mine[batch["answer"][row]] >= 0).all()
    assert (batch["group"] >= 0).sum() > 10  # a template's space before an answer may be part of its first token


def test_what_alone_and_packed_have_in_chunks(tokens: Tokens, others: dict[str, Tokens]) -> None:
    alone = all_of(read(data_of(CHATS), tokens, others["bytes"], task="chat"))
    packed = all_of(read(data_of(CHATS), tokens, others["bytes"], task="chat", length=200, pack=True))
    assert len(packed["id"]) == 1
    for side in ("", "teacher_"):
        before = 0
        for number in range(3):
            at = packed[f"{side}segment"][0] == number
            here = packed[f"{side}group"][0][at]
            expected = alone[f"{side}group"][number][: int(at.sum())]
            assert torch.equal(here, torch.where(expected >= 0, expected + before, -1))
            before += int(expected.max()) + 1


def test_a_teacher_of_texts_in_chunks(tokens: Tokens, others: dict[str, Tokens]) -> None:
    """Each chunk's text is the same on both sides, and holds whole letters."""
    text = "naïve 🙂 hello there, the answer is Größe 🙂🙂 42. " * 4
    for student, teacher in ((tokens, others["bytes"]), (others["bytes"], tokens)):
        batch = all_of(read(data_of([{"text": text}]), student, teacher, task="text", length=30))
        covered = 0
        for row in range(len(batch["id"])):
            ids = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
            theirs = batch["teacher_input_ids"][row][batch["teacher_attention_mask"][row] == 1].tolist()
            assert spelt(student, ids) == spelt(teacher, theirs)
            spelt(student, ids).decode()
            for number in range(int(batch["group"][row].max()) + 1):
                ours = batch["target"][row][batch["group"][row] == number].tolist()
                its = batch["teacher_target"][row][batch["teacher_group"][row] == number].tolist()
                assert spelt(student, ours) == spelt(teacher, its)
            covered += int(batch["answer_bytes"][row])
        first = len(student.pieces[student.encode(text)[0]])
        assert covered == len(text.encode()) - first
        assert batch["target"][batch["answer"]].tolist().count(student.eos[0]) == 1


def test_a_cut_answer_ends_for_the_teacher_too(tokens: Tokens, others: dict[str, Tokens]) -> None:
    row = talk("hello?", "the answer is " * 30)
    whole = all_of(read(data_of([row]), tokens, others["bytes"], task="chat"))
    cut = all_of(read(data_of([row]), tokens, others["bytes"], task="chat", length=40))
    assert cut["input_ids"].shape[1] == 40
    assert cut["teacher_input_ids"].shape[1] < whole["teacher_input_ids"].shape[1] / 2
    theirs = cut["teacher_target"][cut["teacher_answer"]].tolist()
    assert spelt(others["bytes"], theirs) == spelt(tokens, cut["target"][cut["answer"]].tolist())
    assert cut["group"].max() == cut["teacher_group"].max() > 0


def test_a_teacher_that_loses_spaces(tokens: Tokens, others: dict[str, Tokens]) -> None:
    batch = all_of(read(data_of(CHATS), tokens, others["wordpiece"], task="chat"))
    assert (batch["group"].max(1).values == batch["teacher_group"].max(1).values).all()
    assert (batch["group"].max(1).values >= 0).all()


def test_a_teacher_with_the_same_tokenizer_has_no_columns(tokens: Tokens, folder: Path) -> None:
    other = Tokens.load(byte_bpe(folder / "same", template=LLAMA))
    assert "teacher_input_ids" not in all_of(read(data_of(CHATS), tokens, other, task="chat"))


def test_fingerprints(tokens: Tokens, others: dict[str, Tokens]) -> None:
    """They change with the text, the tokenizers and the options; not with where the tokens are kept."""
    rows = data_of(CHATS)
    marks = [
        read(rows, tokens, task="chat").fingerprint,
        read(data_of([*CHATS[:2], talk("a", "c")]), tokens, task="chat").fingerprint,
        read(rows, others["bytes"], task="chat").fingerprint,
        read(rows, tokens, others["bytes"], task="chat").fingerprint,
        read(rows, tokens, task="chat", length=100).fingerprint,
        read(rows, tokens, task="chat", length=100, pack=True).fingerprint,
    ]
    assert len(set(marks)) == len(marks)
    assert read(rows, tokens, task="chat").fingerprint == marks[0]


def test_more_than_fits_in_memory(tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    rows = [talk(f"{n}?", "yes " * (n % 5 + 1)) for n in range(100)]
    rows += [talk("hello?", "")]
    inside = read(data_of(rows), tokens, task="chat")
    assert not list(tmp_path.iterdir())
    outside = read(data_of(rows), tokens, task="chat", budget=1000)
    (home,) = (tmp_path / "tokens").iterdir()
    assert isinstance(outside["train"].store.arrays["ids"], np.memmap)  # type: ignore[attr-defined]
    a, b = all_of(inside), all_of(outside)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (inside.fingerprint, inside.notices) == (outside.fingerprint, outside.notices)
    written = (home / "ids.bin").stat().st_mtime_ns
    again = read(data_of(rows), tokens, task="chat", budget=1000)  # found, not made anew; it tells the same
    assert (home / "ids.bin").stat().st_mtime_ns == written
    assert again.notices == inside.notices
    sent = pickle.dumps(again["train"])
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent).__getitems__([7])["target"], a["target"][7:8, : b["attention_mask"][7].sum()])
    read(data_of([*rows[:-2], talk("other", "words")]), tokens, task="chat", budget=1000)
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_a_row_that_fails_leaves_nothing_behind(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    rows = [talk("a", "b" * 200)] * 200 + [{"messages": "no list"}]
    with pytest.raises(
        RecipeError, match=r"Row row 200: messages are a list of \{role, content\}; given was 'no list'"
    ):
        read(data_of(rows), tokens, task="chat", budget=1000)
    assert list((tmp_path / "tokens").iterdir()) == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"question": "a", "answer": "b"},
            "columns question, answer; a language task reads `messages`, or `prompt` and `completion`",
        ),
        ({"prompt": "a"}, "columns prompt; a language task reads"),
        (
            {"text": torch.tensor(1)},
            r"The column 'text' was read as numbers, not as text. Say data.columns: \{text: text\}",
        ),
    ],
)
def test_other_columns(tokens: Tokens, row: dict[str, Any], sentence: str) -> None:
    class Stacked(Listed):
        def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
            found = super().__getitems__(indices)
            return {n: torch.stack(v) if isinstance(v[0], Tensor) else v for n, v in found.items() if n != "id"}

    with pytest.raises(RecipeError, match=sentence):
        read(Data({"train": Stacked([row])}, dict.fromkeys(row, ""), fingerprint="x"), tokens, task="text")


def test_options_that_make_no_sense(tokens: Tokens) -> None:
    with pytest.raises(RecipeError, match="a row needs 2 tokens at least"):
        read(data_of(CHATS), tokens, task="chat", length=1)
    with pytest.raises(RecipeError, match="say length=1024"):
        read(data_of(CHATS), tokens, task="chat", pack=True)


def test_from_files(tokens: Tokens, tmp_path: Path) -> None:
    """JSON lines, a table with chats as JSON text, and a plain text, as `load_data` gives them."""
    import csv
    import json

    rows = [talk(f"{n}?", f"answer {n}") for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (tmp_path / "chats.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], *([json.dumps(row["messages"])] for row in rows)])
    (tmp_path / "book.txt").write_text("".join(f"Line {n} of the book.\n" for n in range(60)))
    lines, table = (read(load_data(tmp_path / f"chats.{kind}"), tokens, task="chat") for kind in ("jsonl", "csv"))
    for name in ("train", "validation", "test"):
        a, b = all_of(lines, name), all_of(table, name)
        assert all(torch.equal(a[column], b[column]) for column in a)
        split = lines[name]
        assert isinstance(split, TokenSplit)
        said = [tokens.decode(t[x].tolist()) for t, x in zip(a["target"], a["answer"], strict=True)]
        assert said == [f"answer {id}<|im_end|>" for id in split.ids]
    book = read(load_data(tmp_path / "book.txt"), tokens, task="text", length=64)
    text = "".join(
        tokens.decode(x[m == 1].tolist()[bool(n) :])
        for n, (x, m) in enumerate(zip(all_of(book)["input_ids"], all_of(book)["attention_mask"], strict=True))
    )
    assert (tmp_path / "book.txt").read_text().startswith(text.removesuffix("</s>"))


@pytest.mark.parametrize("letters", [1, 300, 2**20])
def test_one_encoding_for_all_blocks(tokens: Tokens, letters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are tokenised many at a time, and come out as each alone."""
    monkeypatch.setattr("limbeck.language.reading.LETTERS", letters)
    rows = [talk("hello " * (n % 4), "\nyes" * (n % 3 + 1)) for n in range(130)]
    batch = all_of(read(data_of(rows), tokens, task="chat"))
    for n, row in enumerate(rows):
        (alone,) = encode(tokens, [chat(tokens, row["messages"])])
        assert batch["input_ids"][n][: len(alone.ids)].tolist() == alone.ids.tolist()
