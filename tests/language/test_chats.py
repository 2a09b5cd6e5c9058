"""Which tokens count: decoding them gives what the assistant said, and nothing else."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from saved_tokenizers import KINDS, SPECIALS, TEMPLATES, byte_bpe

from limbeck.errors import RecipeError
from limbeck.language.chats import Encoded, Sample, answered, chat, checked, encode, plain
from limbeck.language.tokens import Tokens

ENDS = {"chatml": "<|im_end|>", "chatml-marked": "<|im_end|>", "llama": "<|eot_id|>", "mistral": "</s>"}
LETTERS = "aehloTtw4 \n,.:?🙂éßf"  # all known to every tokenizer here
words = st.text(alphabet=LETTERS, max_size=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(kind: str, template: str | None) -> Tokens:
        folder: Path = tmp_path_factory.mktemp(kind)
        return Tokens.load(KINDS[kind](folder, template=None if template is None else TEMPLATES[template]))

    return make


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, str]]:
    said = [{"role": "system", "content": draw(words)}] * draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        said += [{"role": "user", "content": draw(words)}, {"role": "assistant", "content": draw(words)}]
    return said


def runs(encoded: Encoded) -> list[list[int]]:
    """The counted tokens, one list for each run of them."""
    edges = np.flatnonzero(np.diff(encoded.counted.astype(int), prepend=0, append=0))
    return [encoded.ids[begin:end].tolist() for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def spelt(tokens: Tokens, ids: list[int]) -> str:
    """What tokens say, by their bytes: another way than the one that is tested."""
    return b"".join(tokens.spelt(i).encode() if i in tokens.specials else tokens.pieces[i] for i in ids).decode()


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=25)
@given(messages=chats())
@example(messages=[{"role": "user", "content": "\n"}, {"role": "assistant", "content": "\n\n"}])
@example(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": " a "}])
def test_counted_tokens_are_the_answers(made: Any, kind: str, template: str, messages: list[dict[str, str]]) -> None:
    tokens = made(kind, template)
    (encoded,) = encode(tokens, [chat(tokens, messages)])
    contents = [one["content"] for one in messages if one["role"] == "assistant"]
    if template == "llama":
        contents = [content.strip() for content in contents]
    space = " " if template == "mistral" else ""  # the template writes it where the model begins
    expected = [space + content + ENDS[template] for content in contents]
    found = [spelt(tokens, run) for run in runs(encoded)]
    if kind == "wordpiece":  # spaces are lost, letters become small and lose their accents
        normal = tokens.tokenizer.backend_tokenizer.normalizer.normalize_str
        found = ["".join(one.split()) for one in found]
        expected = ["".join(normal(one).split()) for one in expected]
    assert found == expected
    if kind != "wordpiece":
        assert int(encoded.bytes.sum()) == sum(len((space + content).encode()) for content in contents)
    assert not encoded.bytes[~encoded.counted].any()


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=25)
@given(messages=chats())
def test_what_comes_before_an_answer_is_what_the_model_will_be_asked(
    made: Any, kind: str, template: str, messages: list[dict[str, str]]
) -> None:
    """The tokens before the first answer are those of the question alone, whatever the answer begins with."""
    tokens = made(kind, template)
    (encoded,) = encode(tokens, [chat(tokens, messages)])
    at = next(n for n, message in enumerate(messages) if message["role"] == "assistant")
    asked = tokens.encode(tokens.render(messages[:at], ask=True))
    first = int(np.flatnonzero(encoded.counted)[0])
    assert encoded.ids[:first].tolist() == asked


@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(max_examples=40)
@given(prompt=words, completion=words)
def test_an_answer_that_goes_on_from_a_prompt(made: Any, kind: str, prompt: str, completion: str) -> None:
    tokens = made(kind, None)
    sample = answered(prompt, completion)
    (encoded,) = encode(tokens, [sample])
    assert sample.empty == (completion == "")
    assert encoded.ids[-1] == tokens.eos[0]
    assert encoded.counted[-1]
    prompt_ids = tokens.encode(prompt)
    if completion:
        assert encoded.ids[: len(prompt_ids)].tolist() == prompt_ids
        assert encoded.counted.tolist() == [n >= len(prompt_ids) for n in range(len(encoded.ids))]
    if kind == "byte_bpe":
        counted = encoded.ids[encoded.counted].tolist()
        assert tokens.decode(counted[:-1]) == completion
        assert int(encoded.bytes.sum()) == len(completion.encode())


@given(text=st.text(max_size=30))
@example(text="🙂🙂")
def test_every_token_of_a_text_counts(made: Any, text: str) -> None:
    assume(not any(special in text for special in SPECIALS))
    tokens = made("byte_bpe", None)
    (encoded,) = encode(tokens, [plain(text)])
    ids = tokens.encode(text)
    assert encoded.ids.tolist() == [*ids, tokens.eos[0]]
    assert encoded.counted.all()
    assert encoded.bytes.tolist() == [*(len(tokens.pieces[i]) for i in ids), 0]
    assert encoded.ends.tolist() == np.cumsum(encoded.bytes).tolist()
    assert plain(text).empty == (text == "")


@given(text=st.text(alphabet=LETTERS, max_size=20))
@example(text=" 🙂")
def test_ends_are_those_of_the_bytes(made: Any, text: str) -> None:
    """Bytes of letters that are no token of their own; a space that is put before the text is no byte of it."""
    tokens = made("metaspace_bpe", None)
    (encoded,) = encode(tokens, [plain(text)])
    said = b"".join(tokens.pieces[i] for i in encoded.ids[:-1])
    extra = len(said) - len(text.encode())
    assert extra == (1 if text and text[0] != " " else 0)
    ends = np.cumsum([len(tokens.pieces[i]) for i in encoded.ids]) - extra
    assert encoded.ends.tolist() == ends.clip(min=0).tolist()


def test_a_token_in_front_makes_the_first_one_count(made: Any) -> None:
    tokens = Tokens(made("byte_bpe", None).tokenizer)
    tokens.front = (tokens.bos,)
    (text,), (answer,) = encode(tokens, [plain("hello")]), encode(tokens, [answered("hello", " there")])
    assert text.ids.tolist() == [tokens.bos, *tokens.encode("hello"), 2]
    assert text.counted.tolist() == [False] + [True] * (len(text.ids) - 1)
    assert text.ends.tolist()[0] == 0
    assert int(text.bytes.sum()) == 5
    assert answer.ids[0] == tokens.bos
    assert tokens.decode(answer.ids[answer.counted]) == " there</s>"


def test_rows_do_not_touch_each_other(made: Any) -> None:
    tokens = made("byte_bpe", "chatml")
    samples = [
        plain("hello\n"),
        answered("A:", "\n b"),
        chat(tokens, [{"role": "assistant", "content": "\n"}]),
        plain(""),
    ]
    together = encode(tokens, samples)
    for one, sample in zip(together, samples, strict=True):
        (alone,) = encode(tokens, [sample])
        assert one.ids.tolist() == alone.ids.tolist()
        assert one.counted.tolist() == alone.counted.tolist()
        assert one.bytes.tolist() == alone.bytes.tolist()


def with_template(template: str, tmp_path: Path) -> Tokens:
    return Tokens.load(byte_bpe(tmp_path, template=template))


TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


def said(tokens: Tokens, sample: Sample) -> list[str]:
    return [sample.text[begin:end] for begin, end in sample.spans]


def test_marks_without_the_end_token_get_it(tmp_path: Path) -> None:
    """A model that is never shown the end of an answer does not stop."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    )
    tokens = with_template(template, tmp_path)
    assert said(tokens, chat(tokens, TALK)) == ["two<|im_end|>", "four<|im_end|>"]


def test_a_template_that_drops_thoughts_of_earlier_answers(tmp_path: Path) -> None:
    """As of models that think: the last answer has a place for thoughts, which earlier ones lose."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokens = with_template(template, tmp_path)
    assert said(tokens, chat(tokens, TALK)) == ["two<|im_end|>", "<think>\n\n</think>\n\nfour<|im_end|>"]


def test_a_template_that_puts_thoughts_into_the_models_mouth(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokens = with_template(template, tmp_path)
    assert said(tokens, chat(tokens, TALK)) == ["two<|im_end|>", "four<|im_end|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}",
        "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}</s>{% endfor %}",
    ],
)
def test_a_template_that_changes_what_it_wrote(tmp_path: Path, template: str) -> None:
    tokens = with_template(template, tmp_path)
    with pytest.raises(RecipeError, match=r"changes the beginning of a chat when the chat goes on.*\{% generation %\}"):
        chat(tokens, TALK)


def test_a_template_without_an_end(tmp_path: Path) -> None:
    tokens = with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", tmp_path)
    sample = chat(tokens, TALK)
    assert sample.endless
    assert [text.removeprefix("assistant: ") for text in said(tokens, sample)] == ["two", "four"]
    ended = with_template(TEMPLATES["llama"], tmp_path / "ended")
    assert not chat(ended, TALK).endless


def test_answers_without_words_and_chats_without_answers(made: Any) -> None:
    tokens = made("byte_bpe", "chatml")
    assert not chat(tokens, TALK).empty
    assert chat(tokens, [TALK[0], {"role": "assistant", "content": "  "}]).empty
    assert chat(tokens, [TALK[0], {"role": "assistant", "content": None}]).empty
    assert not chat(tokens, [*TALK, {"role": "assistant", "content": ""}]).empty
    silent = chat(tokens, TALK[:1])
    assert (silent.empty, silent.endless, list(silent.spans)) == (False, False, [])


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_answers_from_a_message_on(made: Any, template: str) -> None:
    tokens = made("byte_bpe", template)
    both, last, none = (chat(tokens, TALK, first) for first in (0, 2, 4))
    assert list(last.spans) == list(both.spans)[1:]
    assert (last.text, none.text) == (both.text, both.text)
    assert list(none.spans) == []


def test_several_answers_in_a_row_and_none_before(made: Any) -> None:
    tokens = made("byte_bpe", "chatml")
    row = [{"role": "assistant", "content": one} for one in ("first", "second")]
    assert said(tokens, chat(tokens, row)) == ["first<|im_end|>", "second<|im_end|>"]


def test_an_answer_that_looks_like_the_template(made: Any) -> None:
    """What counts is found by place: words of the template inside an answer do not lead astray."""
    tokens = made("byte_bpe", "chatml")
    for content in ("assistant", "im_end", "<|im_end|>", "user\none<|im_end|>\n<|im_start|>assistant\n"):
        row = [TALK[0], {"role": "assistant", "content": content}, *TALK[2:]]
        assert said(tokens, chat(tokens, row)) == [f"{content}<|im_end|>", "four<|im_end|>"]


def test_parts_of_text_and_keys_without_a_value(made: Any) -> None:
    tokens = made("byte_bpe", "chatml")
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"], "tool_calls": None}, TALK[1]]
    assert checked(parts)[0] == {"role": "user", "content": "ab"}
    assert chat(tokens, parts).text.startswith("<|im_start|>user\nab<|im_end|>")
    assert checked([{"role": "user", "content": 42}])[0]["content"] == "42"
    assert checked([{"role": "user", "content": "a\ud83d"}])[0]["content"] == "a\ufffd"


@pytest.mark.parametrize("given", [None, "hello", [], [1], [{"content": "a"}], [{"role": 3, "content": "a"}]])
def test_what_is_no_chat(given: object) -> None:
    with pytest.raises(RecipeError, match=r"a list of \{role, content\}|a message is \{role, content\}; given was"):
        checked(given)


def test_content_that_is_no_text() -> None:
    with pytest.raises(RecipeError, match="parts of type text; given was"):
        checked([{"role": "user", "content": [{"type": "image", "url": "x"}]}])
    with pytest.raises(RecipeError, match="needed is text; given was"):
        checked([{"role": "user", "content": {"a": 1}}])


def test_ends_of_a_text_do_not_fall(made: Any) -> None:
    tokens = made("byte_bpe", "chatml")
    (encoded,) = encode(tokens, [chat(tokens, [TALK[0], {"role": "assistant", "content": "\nyes"}])])
    assert all(a <= b for a, b in pairwise(encoded.ends.tolist()))
    assert len(encoded.ends) == len(encoded.ids)
