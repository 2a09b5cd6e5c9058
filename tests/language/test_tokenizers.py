"""Facts of tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved_tokenizers import CHATML, KINDS, LLAMA, MISTRAL, byte_bpe, bytes_only, metaspace_bpe
from transformers import AutoTokenizer

from limbeck.errors import RecipeError
from limbeck.language.tokens import PLAIN_TEMPLATE, Tokens, bytes_before, whole_characters


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_bpe(tmp_path_factory.mktemp("tokens") / "one")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tokens:
    return Tokens.load(folder)


def test_text_and_ids(tokens: Tokens) -> None:
    text = "Größe 🙂 <|im_end|>  two"
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert tokens.encoded([text, "", "a"]) == [ids, [], tokens.encode("a")]
    assert tokens.encoded([]) == []
    assert ids.count(tokens.encode("<|im_end|>")[0]) == 1
    assert b"".join(tokens.pieces[i] for i in ids) == text.replace("<|im_end|>", "").encode()


def test_facts(tokens: Tokens, folder: Path) -> None:
    plain = AutoTokenizer.from_pretrained(folder)
    assert tokens.place == str(folder)
    assert tokens.size == len(plain) == len(tokens.pieces)
    assert tokens.pad == plain.pad_token_id
    assert tokens.bos == plain.bos_token_id
    assert tokens.front == ()
    assert tokens.eos == (plain.eos_token_id, plain.convert_tokens_to_ids("<|im_end|>"))
    assert tokens.spelt(tokens.eos[1]) == "<|im_end|>"
    assert tokens.specials == {plain.convert_tokens_to_ids(token) for token in plain.get_added_vocab()}


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA, "<|eot_id|>"), (MISTRAL, "</s>")])
def test_the_end_of_an_answer_is_what_the_template_writes(tmp_path: Path, template: str, end: str) -> None:
    tokens = Tokens.load(byte_bpe(tmp_path, template=template))
    assert tokens.spelt(tokens.eos[-1]) == end
    assert tokens.spelt(tokens.eos[0]) == "</s>"
    assert len(set(tokens.eos)) == len(tokens.eos)


@pytest.mark.parametrize("said", [8, [8, 2]])
def test_ends_that_the_generation_config_names(tmp_path: Path, said: object) -> None:
    byte_bpe(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    assert Tokens.load(tmp_path).eos == (2, 8, 5)


def test_without_template_or_padding(tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(byte_bpe(tmp_path, template=None))
    plain.pad_token = None
    tokens = Tokens(plain)
    assert not tokens.has_template
    assert tokens.template == PLAIN_TEMPLATE
    assert tokens.pad == tokens.eos[0] == plain.eos_token_id
    said = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    assert tokens.render(said) == "<s>System:\nS\n\nUser:\nU\n\nAssistant:\nA</s>\n\n"
    assert tokens.render(said[:2], ask=True) == "<s>System:\nS\n\nUser:\nU\n\nAssistant:\n"
    plain.eos_token = None
    bare = Tokens(plain)
    assert (bare.eos, bare.pad) == ((), 0)
    assert bare.render(said[2:]) == "<s>Assistant:\nA\n\n"


def test_a_text_that_begins_with_a_token_of_its_own(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    plain = AutoTokenizer.from_pretrained(byte_bpe(tmp_path))
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = Tokens(plain)
    assert tokens.front == (1,)
    assert tokens.encode("hello") == plain("hello", add_special_tokens=False).input_ids


def test_templates_by_name(tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(byte_bpe(tmp_path))
    plain.chat_template = {"default": LLAMA, "tools": CHATML}
    assert Tokens(plain).template == LLAMA


def test_fingerprints(tokens: Tokens, tmp_path: Path) -> None:
    assert len(tokens.fingerprint) == 16
    assert int(tokens.fingerprint, 16) >= 0
    marks = {
        "again": Tokens.load(byte_bpe(tmp_path / "again")),
        "template": Tokens.load(byte_bpe(tmp_path / "template", template=LLAMA)),
        "size": Tokens.load(byte_bpe(tmp_path / "size", size=380)),
        "kind": Tokens.load(metaspace_bpe(tmp_path / "kind")),
    }
    assert marks["again"].fingerprint == tokens.fingerprint
    assert len({tokens.fingerprint, *(one.fingerprint for one in marks.values())}) == 4
    special = AutoTokenizer.from_pretrained(tokens.place)
    special.eos_token = "<|eot_id|>"
    assert Tokens(special).fingerprint != tokens.fingerprint
    padded = AutoTokenizer.from_pretrained(tokens.place)  # padding and truncation are of a call, not of the tokenizer
    padded.backend_tokenizer.enable_truncation(3)
    padded.backend_tokenizer.enable_padding(length=9)
    assert Tokens(padded).fingerprint == tokens.fingerprint
    assert Tokens(padded).encode("a longer text") == tokens.encode("a longer text")


def test_same_and_different(tokens: Tokens, tmp_path: Path) -> None:
    assert tokens.same_as(tokens)
    assert tokens.difference(tokens) == ""
    other = Tokens.load(byte_bpe(tmp_path / "template", template=LLAMA))
    assert tokens.same_as(other)
    assert other.same_as(tokens)
    assert tokens.difference(other) == ""
    small = Tokens.load(bytes_only(tmp_path / "bytes"))
    assert not tokens.same_as(small)
    assert not small.same_as(tokens)
    shared = 256 / len({piece for piece in tokens.pieces if piece})
    said = f"(400 and 265 tokens, {shared:.0%} shared)"
    assert tokens.difference(small) == f"teacher and student split text differently {said}"
    assert small.difference(tokens, ("draft", "target")).startswith(
        "draft and target split text differently (265 and 400"
    )


def test_tokens_of_one_side_only(tokens: Tokens) -> None:
    more = AutoTokenizer.from_pretrained(tokens.place)
    more.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert Tokens(more).same_as(tokens)
    assert tokens.same_as(Tokens(more))
    more.add_tokens(["quick brown"])  # a text may hold this one
    assert not Tokens(more).same_as(tokens)
    assert not tokens.same_as(Tokens(more))


def test_the_same_words_under_other_numbers(tokens: Tokens, tmp_path: Path) -> None:
    byte_bpe(tmp_path)
    file = tmp_path / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(told))
    other = Tokens.load(tmp_path)
    assert not other.same_as(tokens)
    assert "100% shared" in other.difference(tokens)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(
        RecipeError, match=r"gave no tokenizer .*It holds: weights\.bin\. Needed is a folder with tokenizer"
    ):
        Tokens.load(tmp_path)


def test_a_template_that_refuses(tmp_path: Path) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('Begin with a question') }}{% endif %}ok"
    tokens = Tokens.load(byte_bpe(tmp_path, template=strict))
    with pytest.raises(RecipeError, match=r"refuses a chat of the roles \[system, user\]: Begin with a question"):
        tokens.render([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    assert tokens.eos == (2,)  # such a template writes no end that could be found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_where_tokens_end(kind: str, tmp_path: Path) -> None:
    """A text is parted among its tokens: the ends rise to its end, and (but for WordPiece's spaces) spell the pieces."""
    tokens = Tokens.load(KINDS[kind](tmp_path))
    text = "Hello the  answer, 42! "
    ids, ends = tokens.located(text)
    assert ids == tokens.encode(text)
    assert (np.diff(ends) >= 0).all()
    parts = [text[a:b] for a, b in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    if kind == "wordpiece":
        assert "".join(parts) == text.rstrip()
    else:
        assert "".join(parts) == text
    if kind == "byte_bpe":
        assert parts == [tokens.pieces[i].decode() for i in ids]


def test_ends_without_offsets(tokens: Tokens) -> None:
    """A tokenizer that has no file gives the same ends, by the bytes of its tokens."""
    slow = Tokens(tokens.tokenizer)
    slow.__dict__["_encoder"] = None
    text = "Größe: the 🙂 answer é 42"
    fast, other = tokens.located(text), slow.located(text)
    assert fast.ids == other.ids
    assert fast.ends.tolist() == other.ends.tolist()
    assert slow.encoded(["the answer"]) == tokens.encoded(["the answer"])


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("rest", ["hello", " hello", "\nhello", "42", ", and", ""])
def test_a_text_that_goes_on(kind: str, rest: str, tmp_path: Path) -> None:
    """Without a space in front that is not there."""
    tokens = Tokens.load(KINDS[kind](tmp_path))
    ids, ends = tokens.continuing(rest)
    spelt = b"".join(tokens.pieces[i] for i in ids).decode()
    if kind == "wordpiece":
        assert spelt.split() == rest.split()
    else:
        assert spelt == rest
    assert list(ends[-1:]) == [len(rest)] * bool(rest)


@given(st.text())
def test_bytes_before_each_character(text: str) -> None:
    before = bytes_before(text)
    assert before.tolist() == [len(text[:n].encode()) for n in range(len(text) + 1)]


@given(st.text(alphabet=st.characters(blacklist_categories=[])))
def test_halves_of_characters_are_replaced(text: str) -> None:
    whole = whole_characters(text)
    whole.encode()
    pairs_apart = any("\ud800" <= letter <= "\udfff" for letter in text)
    assert whole == text or pairs_apart
    assert whole_characters(whole) == whole
