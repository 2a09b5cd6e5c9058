import itertools
import time

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from trained_tokenizers import EXACT, MAKERS, trained

from limbeck.language.alignment import Tokenised, edits, exact, groups, nearest, of_answers, within
from limbeck.language.pieces import pieces, spans, specials

letters = st.one_of(
    st.sampled_from(
        [*"the fox dog hello  \n\t.,'İıßéＡﬁ①数学👩🙂#</w>", "e\u0301", "\u200d", "\u0300", "\ufffd", "\xa0"]
    ),
    st.characters(exclude_categories=["Cs"]),
)
texts = st.lists(letters, max_size=25).map("".join).filter(lambda text: not {"<s>", "</s>", "<unk>"} & {text})
kinds = st.sampled_from(list(MAKERS))


def walk(ends_a, ends_b):
    """GOLD's walk: advance the side that is behind; close a chunk when both are at one byte. Equal ends are one step."""
    found = [-1] * len(ends_a), [-1] * len(ends_b)
    steps = [
        [(end, [i for i, other in enumerate(ends) if other == end]) for end in sorted(set(ends) - {-1})]
        for ends in (ends_a, ends_b)
    ]
    reached, taken, last, chunk = [0, 0], [[], []], 0, 0
    while steps[0] or steps[1]:
        side = 0 if steps[0] and (reached[0] <= reached[1] or not steps[1]) else 1
        reached[side], tokens = steps[side].pop(0)
        taken[side] += tokens
        if reached[0] == reached[1] > last:
            for here, tokens in zip(found, taken):
                for token in tokens:
                    here[token] = chunk
            last, chunk, taken = reached[0], chunk + 1, [[], []]
    return found


offsets = st.lists(st.integers(-1, 12), max_size=12).map(
    lambda ends: np.array([e if e < 0 else max([e, *ends[:i]]) for i, e in enumerate(ends)], np.int64)
)


@given(a=offsets, b=offsets)
@settings(max_examples=120)
def test_chunks_are_those_of_the_walk(a, b):
    found = groups(a, b)
    assert [list(side) for side in found] == [list(side) for side in walk(a.tolist(), b.tolist())]


@given(a=offsets, b=offsets)
@settings(max_examples=50)
def test_numbers_are_the_same_on_both_sides_without_a_gap_and_never_fall(a, b):
    ours, theirs = groups(a, b)
    assert set(ours[ours >= 0]) == set(theirs[theirs >= 0]) == set(range(ours.max(initial=-1) + 1))
    for side, ends in ((ours, a), (theirs, b)):
        assert (np.diff(side[side >= 0]) >= 0).all()
        assert (side[ends < 0] == -1).all()
    exchanged = groups(b, a)
    assert (exchanged[0] == theirs).all()
    assert (exchanged[1] == ours).all()


@given(text=texts, a=kinds, b=kinds)
@settings(max_examples=120)
@example(text="", a="bytes", b="unigram")
@example(text="ﬁne e\u0301 İ", a="wordpiece", b="bytes")
def test_every_chunk_is_the_same_bytes_on_both_sides_and_together_they_are_the_text(text, a, b):
    assume(not any(special in text for special in ("<s>", "</s>", "<unk>")))
    ids = [trained(kind)(text, add_special_tokens=False).input_ids for kind in (a, b)]
    ends = [spans(trained(kind), i, text) for kind, i in zip((a, b), ids)]
    found = groups(*ends)
    data = text.encode()
    covered = []
    for chunk in range(found[0].max(initial=-1) + 1):
        stops = [int(e[g == chunk].max()) for e, g in zip(ends, found)]
        assert stops[0] == stops[1]
        begins = [int(e[g == chunk - 1].max()) if chunk else 0 for e, g in zip(ends, found)]
        assert begins[0] == begins[1]
        spelt = data[begins[0] : stops[0]]
        assert spelt
        covered.append(spelt)
        for kind, i, g in zip((a, b), ids, found):
            if kind in EXACT and "▁" not in text:  # these spell what stands there, but for a space of their own
                own = b"".join(pieces(trained(kind))[t] for t, n in zip(i, g) if n == chunk)
                assert own == spelt or (chunk == 0 and own == b" " + spelt)
    assert data.startswith(b"".join(covered))
    if all(e.max(initial=0) == len(data) for e in ends):
        assert b"".join(covered) == data
        assert all((g >= 0).all() for g in found if data)


def test_the_same_tokenizer_has_one_chunk_per_token():
    text = "the naïve fox 数学"
    ends = spans(trained("byte-level"), trained("byte-level")(text).input_ids, text)
    ours, theirs = groups(ends, ends)
    assert ours.tolist() == theirs.tolist() == list(range(len(ends)))


def test_a_byte_tokenizer_has_one_chunk_per_token_of_the_other():
    text = "the naïve fox 数学"
    ends = spans(trained("byte-level"), trained("byte-level")(text).input_ids, text)
    ours, theirs = groups(np.arange(1, len(text.encode()) + 1), ends)
    assert theirs.tolist() == list(range(len(ends)))
    assert [(ours == n).sum() for n in theirs] == np.diff(ends, prepend=0).tolist()


def test_by_hand():
    #                    t h e_f o x      th | e | _fox
    ours, theirs = groups(np.array([-1, 2, 3, 7, -1]), np.array([1, 2, 5, 7, 7]))
    assert ours.tolist() == [-1, 0, 1, 1, -1]
    assert theirs.tolist() == [0, 0, 1, 1, 1]


def test_what_only_one_side_reaches_has_no_partner():
    ours, theirs = groups(np.array([2, 4, 5]), np.array([2, 4, 7]))
    assert ours.tolist() == [0, 1, -1]
    assert theirs.tolist() == [0, 1, -1]
    assert [g.tolist() for g in groups(np.array([2, 4]), np.array([], np.int64))] == [[-1, -1], []]
    assert [g.tolist() for g in groups(np.array([0, 3]), np.array([0, 0, 3]))] == [[0, 0], [0, 0, 0]]


def test_a_hundred_thousand_tokens_take_less_than_a_second():
    r = np.random.default_rng(0)
    a, b = (np.cumsum(r.integers(1, 9, 100_000)) for _ in range(2))
    start = time.process_time()
    groups(a, b)
    assert time.process_time() - start < 1


def tokenised(kind: str, parts: list[tuple[str, bool]]) -> tuple[Tokenised, list[int]]:
    """A chat: parts of a text, each with whether the model writes it; tokenised apart, as answers begin where asked."""
    tokenizer, ids, counted, answers, text = trained(kind), [], [], [], ""
    for part, writes in parts:
        new = tokenizer(part, add_special_tokens=False).input_ids
        ids, counted = ids + new, counted + [writes] * len(new)
        if writes:
            answers.append((len(text), len(text + part)))
        text += part
    final = np.isin(ids, list(specials(tokenizer)))
    return Tokenised(text, answers, spans(tokenizer, ids, text), np.array(counted, bool), final), ids


def plain_chat(end: str, answers: list[str], before: str = "") -> list[tuple[str, bool]]:
    asked = [(f"<s>user: why{n}?\nassistant:", False) for n in range(len(answers))]
    return list(itertools.chain(*zip(asked, [(before + answer + end, True) for answer in answers])))


def other_chat(end: str, answers: list[str], before: str = "") -> list[tuple[str, bool]]:
    asked = [(f"### Q{n}\n\n### A\n", False) for n in range(len(answers))]
    return list(
        itertools.chain(*zip(asked, [(before + answer + end, True) for answer in answers], [("\n", False)] * 9))
    )


exact_kinds = st.sampled_from(["bytes", "byte-level", "metaspace, no space in front"])
said = st.lists(st.sampled_from(["the", " fox", " hello", "é", "数学", "!", "\n"]), min_size=1, max_size=8).map("".join)


@given(a=exact_kinds, b=exact_kinds, answers=st.lists(said, min_size=1, max_size=3))
@settings(max_examples=30)
def test_answers_in_two_chat_templates_share_their_bytes_and_their_end(a, b, answers):
    sides = [tokenised(a, plain_chat("</s>", answers)), tokenised(b, other_chat("</s>", answers))]
    found = of_answers(sides[0][0], sides[1][0])
    spelt = []
    for kind, (side, ids), group in zip((a, b), sides, found):
        table = pieces(trained(kind))
        assert (group[~side.counted] == -1).all()
        assert (group[side.counted] >= 0).all()
        spelt.append([b"".join(table[t] for t in np.array(ids)[group == n]) for n in range(group.max() + 1)])
    assert spelt[0] == spelt[1]
    assert b"".join(spelt[0]) == "".join(answers).encode()
    assert spelt[0].count(b"") == len(answers)  # the ends


def test_an_end_that_only_one_side_counts_has_no_partner():
    ours, ids = tokenised("bytes", plain_chat("</s>", ["the"]))
    theirs, _ = tokenised("byte-level", other_chat("", ["the"]))
    a, b = of_answers(ours, theirs)
    assert a[-1] == -1
    assert a[-4:-1].tolist() == [0, 0, 0] or a[-2] >= 0
    assert b[theirs.counted].tolist() == sorted(set(a[a >= 0].tolist()))
    assert ids[-1] == trained("bytes").eos_token_id


@pytest.mark.parametrize(("left", "right"), [("", "\n"), ("\n\n", ""), ("", "<think>\n\n</think>\n\n"), (" ", "")])
def test_what_only_one_template_writes_before_an_answer_is_left_out(left, right):
    answer = "hello there, the quick brown fox"
    ours, ids = tokenised("bytes", plain_chat("</s>", [answer], left))
    theirs, other = tokenised("bytes", other_chat("</s>", [answer], right))
    a, b = of_answers(ours, theirs)
    for side, tokens, group in ((ours, ids, a), (theirs, other, b)):
        table = pieces(trained("bytes"))
        assert b"".join(table[t] for t in np.array(tokens)[group >= 0]) == answer.encode()
        assert group.max() == len(answer)  # one per byte, and the end
        assert group[side.final & side.counted].tolist() == [len(answer)]


def test_a_token_that_goes_over_into_the_answer_takes_its_chunk_along():
    # " the" on one side; "\n" and "the" on the other: the first chunk of the one holds a space that the other has not
    ours, ids = tokenised("byte-level", [("x:", False), (" the fox", True)])
    theirs, _ = tokenised("byte-level", [("x:", False), ("the fox", True)])
    names = trained("byte-level").convert_ids_to_tokens(ids)
    assert "Ġthe" in names
    a, b = of_answers(ours, theirs)
    assert a[names.index("Ġthe")] == -1
    assert a[-1] == b[-1] == 0 or a[-1] == b[-1]
    assert set(a[a >= 0]) == set(b[b >= 0])
    text = [b"".join(pieces(trained("byte-level"))[t] for t, g in zip(ids, a) if g >= 0)]
    assert text == [b" fox"]


def test_of_answers_that_differ_the_common_beginning_is_compared():
    ours, _ = tokenised("bytes", plain_chat("</s>", ["the fox", "yes"]))
    theirs, _ = tokenised("bytes", plain_chat("</s>", ["the dog", "yes"]))
    a, b = of_answers(ours, theirs)
    assert a.tolist() == b.tolist()
    assert (a >= 0).sum() == len("the ") + len("yes") + 1  # "the ", then "yes" and its end


@given(a=offsets, b=offsets, data=st.data())
@settings(max_examples=50)
def test_within_keeps_the_chunks_that_both_sides_keep_whole(a, b, data):
    ours, theirs = groups(a, b)
    kept = [np.array(data.draw(st.lists(st.booleans(), min_size=len(e), max_size=len(e))), bool) for e in (a, b)]
    left, right = within(ours, theirs, *kept)
    whole = [
        n
        for n in range(ours.max(initial=-1) + 1)
        if all(k[g == n].all() for g, k in zip((ours, theirs), kept, strict=True))
    ]
    for group, k, cut in ((ours, kept[0], left), (theirs, kept[1], right)):
        assert cut.tolist() == [whole.index(n) if n in whole else -1 for n in group[k].tolist()]


def slow_edits(a: bytes, b: bytes) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(slow_edits(a[1:], b) + 1, slow_edits(a, b[1:]) + 1, slow_edits(a[1:], b[1:]) + (a[0] != b[0]))


small = st.binary(max_size=5).map(lambda b: bytes(97 + x % 3 for x in b))


@given(a=small, b=small)
@settings(max_examples=50)
def test_edits_are_those_of_the_definition(a, b):
    assert edits(a, b) == slow_edits(a, b)
    assert edits(a, b) == edits(b, a)


def test_exact_matches_compare_bytes_not_names():
    a, b = (pieces(trained(kind)) for kind in ("byte-level", "metaspace"))
    found = exact(a, b, {0: 1})
    assert found[0] == 1
    for i, j in enumerate(found[2:], 2):
        assert (j >= 0) == (a[i] in set(b))
        assert j < 0 or a[i] == b[j]
    assert a[trained("byte-level").convert_tokens_to_ids("Ġthe")] == b" the"
    assert found[trained("byte-level").convert_tokens_to_ids("Ġthe")] == trained("metaspace").convert_tokens_to_ids(
        "▁the"
    )


@given(a=st.lists(small, max_size=8), b=st.lists(small, min_size=1, max_size=8))
@settings(max_examples=60)
def test_the_nearest_token_is_the_nearest(a, b):
    # with so few tokens all are neighbours, so the choice must be the best there is, ties and all
    found = nearest(a, b)
    last = {piece: i for i, piece in enumerate(b) if piece}
    for piece, other in zip(a, found):
        if not piece or not last:
            assert other == -1
        elif piece in last:
            assert other == last[piece]
        else:
            distance, _, best = min((edits(piece, x), abs(len(piece) - len(x)), i) for x, i in last.items())
            assert edits(piece, b[other]) == distance
            if distance == 1 or len(last) <= 6:
                assert other == best


def test_special_tokens_are_mapped_by_name_alone():
    assert nearest([b"", b"abc", b""], [b"abd", b""], {0: 1}).tolist() == [1, 0, -1]
    assert nearest([b"abc"], [b""]).tolist() == [-1]


def test_the_table_that_is_kept_is_not_the_one_that_is_given_away():
    a, b = [b"abc", b"x"], [b"abd", b"y"]
    nearest(a, b)[:] = 7
    assert nearest(a, b).tolist() == [0, 1]
