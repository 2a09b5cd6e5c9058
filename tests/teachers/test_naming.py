"""What words stand for: labels in answers, tokens that are reported as texts."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.language.tokens import Tokens
from limbeck.teachers import naming

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from trained_tokenizers import MAKERS, trained

LABELS = ["card arrival", "card", "lost or stolen card", "Yes", "no"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("card arrival", 0),
        ("  'Card_Arrival'.", 0),
        ("The intent is: card arrival!", 0),
        ("card", 1),
        ("It is about a CARD, I think", 1),
        ("lost or stolen card", 2),
        ("yes", 3),
        ("**Yes**", 3),
        ("yes, not no", None),
        ("yesterday", None),
        ("nothing", None),
        ("", None),
        ("card arrival or lost or stolen card", None),
    ],
)
def test_which_label_an_answer_names(answer, expected):
    assert naming.label_in(answer, LABELS) == expected


@given(st.integers(0, 4), st.text("., \n'\"*:-", max_size=5), st.text("., \n'\"*:-", max_size=5))
def test_a_label_in_any_dress_is_found(which, before, after):
    assert naming.label_in(before + LABELS[which].upper() + after, LABELS) == which


@pytest.mark.parametrize("certainty", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [2, 7])
def test_logits_of_what_was_said(certainty, count):
    found = naming.logits([1, None, 0], count, certainty)
    others = (1 - certainty) / (count - 1)
    for row, said in ((0, 1), (2, 0)):
        expected = torch.full((count,), others)
        expected[said] = certainty
        torch.testing.assert_close(found[row].softmax(-1), expected, rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(found[row].exp().sum(), torch.tensor(1.0))
    torch.testing.assert_close(found[1], torch.full((count,), -math.log(count)))
    assert torch.isfinite(found).all()
    assert (found / 4).softmax(-1)[0, 1] > 0.5 or certainty < 1


@pytest.mark.parametrize("kind", MAKERS)
def test_a_token_is_found_by_its_name_or_not_at_all(kind):
    tokens = Tokens(trained(kind))
    found = naming.ids_by_text(tokens)
    clear = 0
    for token in range(tokens.size):
        name, text = tokens.tokenizer.convert_ids_to_tokens(token), tokens.decode([token])
        assert found.get(name) in (token, None)
        assert found.get(text) in (token, None)
        clear += found.get(name) == token
    assert clear > 0.4 * tokens.size


def test_nothing_is_known_of_texts_that_two_tokens_share():
    """SentencePiece's `▁a` and `a` both decode to `a`; only their own names tell them apart."""

    class Two:
        size, pieces = 3, [b" a", b"a", b"\xe2"]

        class tokenizer:  # noqa: N801
            convert_ids_to_tokens = staticmethod(lambda i: ["\N{LOWER ONE EIGHTH BLOCK}a", "a", "<0xE2>"][i])

        decode = staticmethod(lambda ids: ["a", "a", "\N{REPLACEMENT CHARACTER}"][ids[0]])

    found = naming.ids_by_text(Two())
    assert found == {
        "\N{LOWER ONE EIGHTH BLOCK}a": 0,
        " a": 0,
        "a": None,
        "bytes:\\x20\\x61": 0,
        "bytes:\\x61": 1,
        "bytes:\\xe2": 2,
        "<0xE2>": 2,
    }
