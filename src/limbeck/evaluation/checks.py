"""The checks that one may ask for, and their options: the same in a recipe, in Python and on the command line.

In a recipe `evaluate: [quality, {use: fid, samples: 10000}]`, on the command line `limbeck evaluate RUN fid samples=10000`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from limbeck.errors import RecipeError, nearest
from limbeck.options import Options

LATER = ("robustness", "search", "judge")
CLIP = "openai/clip-vit-base-patch32"


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise ValueError("needed is a whole number from 1 on")
    return int(value)


Count = Annotated[int, BeforeValidator(_whole)]


class Check(Options):
    """One check with its options."""

    use: ClassVar[str]

    def __init__(self, **given: Any) -> None:
        self._take(given, self.use)

    def spec(self) -> str | dict[str, Any]:
        """How a recipe spells it: its name, and where an option is not as usual every option."""
        return {"use": self.use, **self.options()} if self.options(all=False) else self.use


class Quality(Check):
    """The figures of the task (always measured)."""

    use = "quality"


class Fidelity(Check):
    """How the student answers as the teacher does (always measured where both are classifiers)."""

    use = "fidelity"


class Calibration(Check):
    """Whether probabilities mean what they say (always measured of classifiers)."""

    use = "calibration"


class Speed(Check):
    """Times at a batch of one and of `batch_size`, each the median of `repeats` calls; peak memory."""

    use = "speed"
    batch_size: Count = 32
    repeats: Count = 20


class Missing(Check):
    """The metric without each modality."""

    use = "missing"


class Writing(Check):
    """What a language model writes, and how likely the teacher finds it."""

    use = "writing"


class Speculative(Check):
    """How much faster the teacher writes with the student's drafts."""

    use = "speculative"


class Fid(Check):
    """The Frechet distance between generated and real pictures, see `limbeck.evaluation.fid`.

    samples: how many pictures are generated; None: one for each row of the split.
    classifier: in whose features; None: Inception v3 with its published weights; a file: these weights; else a network, as a student is named.
    layer: where the features are; None: the usual place.
    """

    use = "fid"
    samples: Count | None = None
    classifier: str | None = None
    layer: str | None = None


class ClipScore(Check):
    """How well generated pictures fit their prompts, see `limbeck.evaluation.clip_score`.

    model: a CLIP of transformers, by its folder or hub name. scale: what the cosine is multiplied by. samples: as for `fid`.
    """

    use = "clip-score"
    model: str = CLIP
    scale: Annotated[float, Field(gt=0)] = 100.0
    samples: Count | None = None


CHECKS: dict[str, type[Check]] = {
    check.use: check for check in (Quality, Fidelity, Calibration, Speed, Missing, Writing, Speculative, Fid, ClipScore)
}


def check(choice: str | Mapping[str, Any] | Check) -> Check:
    """A check out of its name, or of `{use: NAME, option: value}`.

    Raises:
        RecipeError: no such check, or no such option of it.
    """
    if isinstance(choice, Check):
        return choice
    given = dict(choice) if isinstance(choice, Mapping) else {"use": choice}
    name = given.pop("use", None)
    if name in LATER:
        raise RecipeError(f"the check '{name}' is not there yet. There is: {', '.join(CHECKS)}.")
    if not isinstance(name, str):
        raise RecipeError(f"needed is a name or a list of names, given was {choice!r}.")
    if name not in CHECKS:
        raise RecipeError(f"unknown check '{name}'. {nearest(name, CHECKS)}")
    return CHECKS[name](**given)


def chosen(
    choices: Iterable[str | Mapping[str, Any] | Check], options: Mapping[str, Any] | None = None
) -> dict[str, Check]:
    """The checks by name, each once (the last counts), and `options` put over those of them that have such an option.

    Raises:
        RecipeError: an option that no check has, or that only checks have which are not asked for.
    """
    found = {one.use: one for one in map(check, choices)}
    for key, value in (options or {}).items():
        having = [use for use, kind in CHECKS.items() if key in kind.option_model().model_fields]
        if not having:
            known = [name for kind in CHECKS.values() for name in kind.option_model().model_fields]
            raise RecipeError(f"unknown option '{key}' of a check. {nearest(key, dict.fromkeys(known))}")
        asked = [use for use in having if use in found]
        if not asked:
            raise RecipeError(
                f"{key} is an option of the check {' and '.join(having)}, which is not asked for: evaluate RUN {having[0]} {key}={value}"
            )
        for use in asked:
            found[use] = CHECKS[use](**found[use].options(all=False) | {key: value})
    return found


def spelled(choices: Sequence[Check]) -> list[str | dict[str, Any]]:
    """Checks as a recipe has them."""
    return [one.spec() for one in choices]
