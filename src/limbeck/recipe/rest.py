"""The other keys: what is compared, measured, required, spent, stored, written and watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from limbeck.errors import RecipeError, nearest
from limbeck.evaluation import checks
from limbeck.evaluation.requirements import parse
from limbeck.recipe.sections import Section, listed, nothing
from limbeck.shipping.exporting import FORMATS
from limbeck.shipping.exporting import LATER as EXPORTS_LATER

CONTROLS = ("train", "start", "none")
EXPORTS = tuple(FORMATS)


class LimitKeys(Section):
    """What may be spent: money, hours of this run, GB of memory per device, GB of disk; None: no limit."""

    usd: Annotated[float, Field(ge=0)] | None = None
    hours: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    disk_gb: Annotated[float, Field(gt=0)] | None = None


class CacheKeys(Section):
    """What to store of the teacher: `signals` (None: those that the method reads), of `splits` (None: of all).

    `views`: in how many random views training is asked, where the teacher's view draws; one serves an epoch.

    How much of logits: `top_k`, the k most likely classes and the mass of the others (None: all). Of a language model one
    of `top_k`, `samples` (so many unbiased draws) and `token_bytes`: as many classes as are worth their bytes, so many
    bytes for a token on average (114 where none of the three is given).
    """

    signals: Annotated[list[str] | None, BeforeValidator(listed)] = None
    top_k: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    samples: Annotated[int, Field(ge=1)] | None = None
    token_bytes: Annotated[float, Field(ge=8)] | None = None
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    views: Annotated[int, Field(ge=1)] = 1
    splits: Annotated[list[str] | None, BeforeValidator(listed)] = None

    @model_validator(mode="after")
    def _one_way(self) -> CacheKeys:
        given = [key for key in ("top_k", "samples", "token_bytes") if getattr(self, key) is not None]
        if len(given) > 1:
            raise RecipeError(f"{' and '.join(given)} are different ways to store logits. Give one of them.")
        return self


def _choices(value: Any) -> Any:
    """Choices without options, each once: a name, `{use: name}`, or a list of them."""
    names = []
    for entry in listed(value) or []:
        given = dict(entry) if isinstance(entry, Mapping) else {"use": entry}
        name = given.pop("use", None)
        if not isinstance(name, str):
            raise RecipeError(f"needed is a name or a list of names, given was {entry!r}.")
        if given:
            raise RecipeError(f"'{name}' has no options yet, given was {', '.join(map(str, given))}.")
        names.append(name)
    return list(dict.fromkeys(names))


def _known(names: list[str], known: Iterable[str], to_come: Iterable[str], what: str) -> list[str]:
    for name in names:
        if name in to_come:
            raise RecipeError(f"the {what} '{name}' is not there yet. There is: {', '.join(known)}.")
        if name not in known:
            raise RecipeError(f"unknown {what} '{name}'. {nearest(name, known)}")
    return names


def _checks(value: Any) -> Any:
    """Checks by their names; one whose options are not the usual ones as a mapping with all of them."""
    return checks.spelled(list(checks.chosen(listed(value) or []).values()))


Choices = Annotated[list[str], BeforeValidator(_choices)]


class OtherKeys(Section):
    """`control`, `evaluate`, `require`, `limit`, `cache`, `export`, `track`, `seed`."""

    control: str = "train"
    evaluate: Annotated[list[str | dict[str, Any]], BeforeValidator(_checks)] = ["quality"]
    require: Annotated[list[str], BeforeValidator(lambda value: listed(value) or [])] = []
    limit: Annotated[LimitKeys, BeforeValidator(nothing)] = LimitKeys()
    cache: Annotated[CacheKeys, BeforeValidator(nothing)] = CacheKeys()
    export: Choices = []
    track: Choices = []
    seed: int = Field(0, ge=0)

    @field_validator("control", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        """`train`, `start`, `none`, a run, or the path of one."""
        value = (
            "none" if value is None else str(getattr(value, "folder", value)) if not isinstance(value, bool) else value
        )
        if isinstance(value, str) and value not in CONTROLS and "/" not in value and not Path(value).exists():
            raise RecipeError(
                f"'{value}' is none of {', '.join(CONTROLS)}, and no run folder. {nearest(value, CONTROLS)}"
            )
        return value

    @field_validator("export")
    @classmethod
    def _formats(cls, names: list[str]) -> list[str]:
        return _known(names, EXPORTS, EXPORTS_LATER, "export")

    @field_validator("track")
    @classmethod
    def _trackers(cls, names: list[str]) -> list[str]:
        if not names:
            return names
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        return _known(names, sorted(LOGGER_TYPE_TO_CLASS), (), "tracker")

    @field_validator("require")
    @classmethod
    def _sentences(cls, lines: list[str]) -> list[str]:
        return list(dict.fromkeys(parse(line).text for line in lines))
