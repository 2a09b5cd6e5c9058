import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from trained_tokenizers import EXACT, MAKERS, trained, wrapped
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from limbeck.errors import RecipeError
from limbeck.language.pieces import byte_alphabet, pieces, spans, specials

# Text with everything that tokenizers trip over: several scripts, combining marks, ligatures, joiners, white space.
letters = st.one_of(
    st.sampled_from(
        [*"the fox dog hello  \n\t.,'İıſßéＡﬁ①½数学👩🙂▁Ġ#</w>", "e\u0301", "\u200d", "\u0300", "\ufffd", "\xa0"]
    ),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.lists(letters, max_size=30).map("".join)
words = st.lists(st.sampled_from(["the", " fox", " hello", "world", "\n", "  ", "é", "数学", "!"]), max_size=12).map(
    "".join
)


def encoded(kind: str, text: str) -> list[int]:
    return trained(kind)(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("kind", EXACT)
@given(text=texts)
@settings(max_examples=25)
def test_the_pieces_of_a_text_spell_it_and_the_ends_are_their_sums(kind, text):
    if "</s>" in text or "<s>" in text or "▁" in text:  # they spell something else
        return
    spelt = [pieces(trained(kind))[i] for i in encoded(kind, text)]
    joined, data = b"".join(spelt), text.encode()
    if joined != data:  # a space in front, and never anything else
        assert joined == b" " + data
        assert "space in front" in kind or kind == "metaspace"
    before, extra = 0, len(joined) - len(data)
    for end, piece in zip(spans(trained(kind), encoded(kind, text), text), spelt, strict=True):
        before += len(piece)
        assert end == max(before - extra, 0)


@pytest.mark.parametrize("kind", list(MAKERS))
@given(text=texts)
@example(text="")
@example(text="İstanbul ﬁne e\u0301 Åé")
@example(text="  \n ")
@settings(max_examples=25)
def test_ends_never_fall_and_no_token_begins_before_the_last_one_ended(kind, text):
    if any(special in text for special in ("<s>", "</s>", "<unk>")):
        return
    ids = encoded(kind, text)
    ends = spans(trained(kind), ids, text)
    assert len(ends) == len(ids)
    stops = [int(end) for end in ends if end >= 0]
    assert stops == sorted(stops)
    assert all(0 <= end <= len(text.encode()) for end in stops)
    said = trained(kind).backend_tokenizer.encode(text, add_special_tokens=False).offsets  # in characters
    if kind not in EXACT and "byte" not in kind:
        for at, (_, stop) in enumerate(said):
            shared = at + 1 < len(said) and said[at + 1][0] < stop  # several tokens of one character, taken apart
            assert shared or ends[at] >= len(text[:stop].encode())
            if at + 1 < len(said):
                assert ends[at] <= len(text[: said[at + 1][0]].encode()) or ends[at] == ends[at + 1]
    if kind == "byte-level" or kind == "bytes":
        assert stops[-1:] == [len(text.encode())][: len(stops)]


def words_of(model: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a few words that lower-cases and cuts accents off."""
    if model == "wordpiece":
        names = ["<unk>", "<s>", "</s>", "the", "fox", "na", "##i", "##ve", "f", "##e", "."]
        backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
        backend.decoder = decoders.WordPiece()
    else:
        names = ["<unk>", "<s>", "</s>", "the", "fox", "naive", "fe", "."]
        backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrapped(backend, unk_token="<unk>")


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        ("wordpiece", "The  Fox", [("the", 3), ("fox", 8)]),
        ("wordpiece", "naïve fox", [("na", 2), ("##i", 4), ("##ve", 6), ("fox", 10)]),
        ("wordpiece", "nai\u0308ve fox ", [("na", 2), ("##i", 5), ("##ve", 7), ("fox", 11)]),  # the mark is cut off
        ("wordpiece", " Fe\u0301\u0301 \u0000.\n", [("f", 2), ("##e", 7), (".", 10)]),
        ("wordpiece", "the zoo fox", [("the", 3), ("<unk>", 7), ("fox", 11)]),
        ("words", "The naïve\tfox.", [("the", 3), ("naive", 10), ("fox", 14), (".", 15)]),
    ],
)
def test_ends_count_the_original_bytes_where_the_tokenizer_changes_the_text(model, text, expected):
    tokenizer = words_of(model)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert (
        list(zip(tokenizer.convert_ids_to_tokens(ids), spans(tokenizer, ids, text).tolist(), strict=True)) == expected
    )


def test_words_bring_the_space_in_front_of_them():
    table = dict(zip(["<unk>", "<s>", "</s>", "the", "fox", "na", "##i"], pieces(words_of("wordpiece"))))
    assert table == {"<unk>": b"", "<s>": b"", "</s>": b"", "the": b" the", "fox": b" fox", "na": b" na", "##i": b"i"}
    assert pieces(words_of("words"))[3:] == [b" the", b" fox", b" naive", b" fe", b" ."]


def test_one_character_as_several_tokens_and_several_characters_as_one():
    kind = "unigram, NFKC and lower case"
    text = "the ﬁ e\u0301 the"  # a ligature that becomes two letters, two characters that become one
    ends = spans(trained(kind), encoded(kind, text), text).tolist()
    boundaries = {0, *(len(text[:i].encode()) for i in range(len(text) + 1))}
    assert set(ends) <= boundaries
    assert len("the ﬁ e".encode()) not in ends  # inside what became é
    assert {3, len("the ﬁ".encode()), len("the ﬁ e\u0301".encode()), len(text.encode())} <= set(ends)


def test_a_composed_character_written_as_bytes_has_one_end():
    kind, text = "byte-level, NFC", "xe\u0301y"
    names = trained(kind).convert_ids_to_tokens(encoded(kind, text))
    ends = spans(trained(kind), encoded(kind, text), text).tolist()
    assert ends[0] == 1
    assert ends[-1] == 5
    assert set(ends) == {1, 4, 5}
    assert len(ends) == len(names)


def test_a_token_that_ends_inside_a_character_ends_at_that_byte():
    text = "a🙂"
    assert spans(trained("bytes"), encoded("bytes", text), text).tolist() == [1, 2, 3, 4, 5]
    assert spans(trained("metaspace"), encoded("metaspace", text), text)[-4:].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", list(MAKERS))
def test_special_tokens_around_a_text_stand_for_none_of_it(kind):
    tokenizer, text = trained(kind), "the fox"
    ids = encoded(kind, text)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    plain = spans(tokenizer, ids, text).tolist()
    assert spans(tokenizer, [bos, *ids, eos, eos], text).tolist() == [-1, *plain, -1, -1]
    assert spans(tokenizer, [bos, eos], "").tolist() == [-1, -1]
    assert spans(tokenizer, [], text).tolist() == []
    assert {bos, eos} <= specials(tokenizer)
    assert pieces(tokenizer)[bos] == pieces(tokenizer)[eos] == b""


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_special_token_that_is_written_in_the_text_ends_where_it_ends_there(kind):
    tokenizer = trained(kind)
    text = "the</s>fox"
    ids = encoded(kind, text)
    at = ids.index(tokenizer.eos_token_id)
    ends = spans(tokenizer, ids, text)
    assert ends[at] == len("the</s>")
    assert ends[-1] == len(text)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_a_text_that_was_cut_ends_where_it_was_cut(kind):
    text = "The naïve fox & the dog"
    ids = encoded(kind, text)
    whole = spans(trained(kind), ids, text)
    for count in range(len(ids)):
        cut = spans(trained(kind), ids[:count], text)
        assert cut.tolist() == whole[:count].tolist()


@given(ids=st.lists(st.integers(2, 419), max_size=20))
@settings(max_examples=60)
def test_any_ids_at_all_are_placed_in_the_text_that_they_decode_to(ids):
    # A sampled sequence need be no tokenisation that the tokenizer would choose, and no UTF-8 either.
    tokenizer = trained("byte-level")
    spelt = [pieces(tokenizer)[i] for i in ids]
    text = b"".join(spelt).decode(errors="replace")
    assert tokenizer.decode(ids) == text
    ends = spans(tokenizer, ids, text)
    assert len(ids) == 0 or ends[-1] == len(text.encode())
    for at in range(len(ids)):
        before = b"".join(spelt[: at + 1])
        try:
            before.decode()
        except UnicodeDecodeError:
            continue
        if not any(b"\xef\xbf\xbd" in piece for piece in spelt):
            assert text.encode()[: ends[at]].decode(errors="replace").startswith(before.decode())


def test_bytes_that_are_no_utf8_have_the_end_of_what_replaces_them():
    tokenizer = trained("bytes")
    number = {piece: i for i, piece in enumerate(pieces(tokenizer))}
    ids = [number[bytes([b])] for b in b"a\xe4\xbdb\xffc"]
    text = tokenizer.decode(ids)
    assert text == "a\ufffdb\ufffdc"
    assert spans(tokenizer, ids, text).tolist() == [1, 4, 4, 5, 8, 9]


@given(text=words)
@settings(max_examples=10)
def test_plain_bytes_without_a_file_to_read(text):
    tokenizer = ByT5Tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert b"".join(pieces(tokenizer)[i] for i in ids) == text.encode()
    assert spans(tokenizer, [*ids, tokenizer.eos_token_id], text).tolist() == [*range(1, len(ids) + 1), -1]


def test_what_single_tokens_spell():
    def spell(kind: str, token: str) -> bytes:
        return pieces(trained(kind))[trained(kind).convert_tokens_to_ids(token)]

    assert spell("byte-level", "Ġthe") == b" the"
    assert spell("metaspace", "▁the") == b" the"
    assert spell("metaspace", "<0x0A>") == b"\n"
    assert spell("metaspace", "<0xFF>") == b"\xff"
    assert spell("end of word", "the</w>") == b"the "
    assert spell("unigram", "<unk>") == b""


def test_the_alphabet_of_bytes_is_the_one_of_the_tokenizers_library():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ")
    assert byte_alphabet()["Ċ"] == ord("\n")


def test_tokens_that_were_added_later_spell_themselves_and_are_seen():
    tokenizer = wrapped(Tokenizer.from_str(trained("byte-level").backend_tokenizer.to_str()))
    before = len(pieces(tokenizer))
    assert tokenizer.add_tokens(["naïve Ġ"]) == 1
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]}) == 1
    table = pieces(tokenizer)
    assert table[before:] == ["naïve Ġ".encode(), b""]
    text = "a naïve Ġ<|im_end|>b"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert spans(tokenizer, ids, text)[-1] == len(text.encode())


def test_ids_of_another_text_are_refused():
    with pytest.raises(RecipeError, match="do not belong together"):
        spans(trained("wordpiece"), encoded("wordpiece", "the dog"), "a fox")
    with pytest.raises(RecipeError, match="the tokenizer has 0 to"):
        spans(trained("bytes"), [100000], "a")


@pytest.mark.parametrize("kind", EXACT)
def test_a_chat_that_was_tokenised_in_parts_is_placed_too(kind):
    # parts of a text tokenised apart: not the ids that the tokenizer gives for the whole, with special tokens written out
    tokenizer = trained(kind)
    parts = ["<s>", "the f", "ox 数", "</s>", "<s>", "hello", "</s>"]
    ids = [i for part in parts for i in encoded(kind, part)]
    text = "<s>the fox 数</s><s>hello</s>"
    if "space in front" in kind or kind == "metaspace":
        ids = [i for part in parts[:2] + parts[3:] for i in encoded(kind, part)]  # a space of its own inside a word
        text = "<s>the f</s><s>hello</s>"
    ends = spans(tokenizer, ids, text)
    at = [i for i, number in enumerate(ids) if number in specials(tokenizer)]
    inner = len(text) - len("</s><s>hello</s>") + len(text.encode()) - len(text)
    assert ends[at].tolist() == [3, inner + 4, inner + 7, len(text.encode())]
    assert ends[at[1] - 1] == inner
