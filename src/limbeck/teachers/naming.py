"""What a server's words stand for: a label that an answer names, as logits; a token that is reported as text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.language.tokens import Tokens

NEVER = -100.0
"""The logit of a label that was not said: a probability of 4e-44, and finite at any temperature."""


def label_in(answer: str, labels: Sequence[str]) -> int | None:
    """Which label an answer names: it is one, or holds exactly one, as words of its own (of labels in each other the longest).

    Case and punctuation do not count. None: it names none, or several.

    >>> label_in(" 'Yes.' ", ["yes", "no"])
    0
    """
    said, *known = (" ".join(_words(text)) for text in (answer, *labels))
    if said in known:
        return known.index(said)
    held = [i for i, label in enumerate(known) if label and f" {label} " in f" {said} "]
    longest = [i for i in held if not any(f" {known[i]} " in f" {known[j]} " for j in held if j != i)]
    return longest[0] if len(longest) == 1 else None


def logits(said: Sequence[int | None], count: int, certainty: float = 1.0) -> Float[Tensor, "samples labels"]:
    """Log-probabilities: `certainty` for the label that was said, the rest shared by the others (log at least `NEVER`).

    None: nothing is known, all are equally likely.
    """
    other = (1 - certainty) / max(count - 1, 1)
    found = torch.full((len(said), count), max(math.log(other), NEVER) if other > 0 else NEVER)
    for row, label in enumerate(said):
        if label is None:
            found[row] = -math.log(count)
        else:
            found[row, label] = math.log(certainty)
    return found


def ids_by_text(tokens: Tokens) -> dict[str, int | None]:
    """From the texts as which servers report tokens to their ids; None for a text that several tokens share.

    A token is reported under its own name (`Ġthe`), as what it decodes to, as the bytes it spells (`bytes:\\xe2`), or as
    the text of those. Which of these a server takes is not known, so a text is clear only if it is so in all of them.
    """
    found: dict[str, int | None] = {}
    for token, raw in enumerate(tokens.pieces):
        texts = {str(tokens.tokenizer.convert_ids_to_tokens(token)), tokens.decode([token])}
        texts.add("bytes:" + "".join(f"\\x{byte:02x}" for byte in raw))
        with contextlib.suppress(UnicodeDecodeError):
            texts.add(raw.decode())
        for text in texts - {"", "bytes:", "\N{REPLACEMENT CHARACTER}"}:
            found[text] = token if found.get(text, token) == token else None
    return found


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.casefold()).split()
