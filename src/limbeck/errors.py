"""What goes wrong, said in sentences: what was given, what is needed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RecipeError(ValueError):
    """This input cannot be run; nothing was started. The message is one or more complete sentences for a person."""


class LimbeckWarning(UserWarning):
    """Something a user should know although the work goes on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that names the closest of `known` words, or lists them all when none is close.

    >>> nearest("batchsize", ["batch_size", "lr"])
    "Did you mean 'batch_size'?"
    """
    names = sorted(known)
    bare = {name.lower().replace("_", "").replace("-", ""): name for name in names}
    close = difflib.get_close_matches(word.lower().replace("_", "").replace("-", ""), bare, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{bare[close[0]]}'?"
    if not names:
        return "There are none."
    listed = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    return f"There is: {listed}."
