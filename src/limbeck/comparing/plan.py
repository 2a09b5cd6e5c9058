"""What is to be compared: every source with every combination of the varied keys, as one run each."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError
from limbeck.method import Method, Procedure, Sum, name_of
from limbeck.recipe import Recipe, text
from limbeck.recipe.comparing import difference
from limbeck.recipe.live import absent, revive, spell
from limbeck.run import Run, Source

PROBLEM = ("data", "task", "student.view")  # what is to be learned from what; everything else is a way of doing it
ALONE = "supervised"


@dataclass
class Entry:
    """One run of a comparison: what it is, and what has come of it.

    Attributes:
        name: of its folder.
        mark: fingerprint of its recipe (for `supervised` without the teacher, who has no part in it).
        recipe: which of the comparison's recipes it changes; `settings`: how, by key (several keys that vary together
            are one, `seed,teacher`).
        problem: what tells its data, its task and what its student sees from those of others.
        status: `planned`, `finished` or `failed`, the last with a `reason`.
        tuned: settings that tuning has found, after so many `trial_seconds`.
        found: the figures of a finished run.
    """

    name: str
    mark: str
    recipe: str
    settings: dict[str, Any]
    method: str
    problem: dict[str, Any]
    seed: str
    status: str = "planned"
    reason: str | None = None
    tuned: dict[str, Any] = field(default_factory=dict)
    trial_seconds: float | None = None
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """Where a run belongs: the problem, and the arm, with the parts of its name by key."""

    problem: str
    arm: str
    parts: tuple[tuple[str, str], ...] = ()


@dataclass
class Plan:
    """The runs of a comparison with their recipes, and the recipes that they change, as the file has them."""

    recipes: dict[str, dict[str, Any]]
    entries: list[Entry]
    ready: dict[str, Recipe]  # by mark
    there: dict[str, Run]  # finished runs that were given as sources, by mark

    def fresh(self, mark: str) -> Recipe:
        """The recipe of a run, with copies of what was given in Python: training changes it, and others need it as it was."""
        recipe = self.ready[mark]
        kept = {key: value for key, value in recipe.tree().items() if key in ("student", "teacher", "method", "stages")}
        return recipe.with_keys({key: copy.deepcopy(value) for key, value in kept.items() if value is not None})


def plan(
    sources: Sequence[Source | Run], settings: Mapping[str, Sequence[Any]], keys: Mapping[str, Any] | None = None
) -> Plan:
    """Every source with every combination of values, each run once.

    Args:
        settings: key -> its values, in the order in which they are put over a recipe. `a,b` varies two keys together:
            a list of two gives each its own, anything else is given to both.
        keys: whole keys put over every source.

    Raises:
        RecipeError: there is nothing to compare, or one of the recipes cannot be made: nothing is started.
    """
    for key, values in settings.items():
        if isinstance(values, str) or not isinstance(values, Iterable) or not list(values):
            raise RecipeError(f"vary: '{key}' needs a list of values, given was {values!r}.")
    made = Plan({}, [], {}, {})
    for source in sources or [Recipe.of(keys or {})]:
        base, title, run = _opened(source)
        base = base.with_keys(keys) if keys and sources else base
        title = _add(made.recipes, title, json.loads(json.dumps(base.to_mapping(), default=str)))
        for values in itertools.product(*settings.values()):
            chosen = dict(zip(settings, values))
            recipe = base
            for key, value in chosen.items():
                recipe = _changed(recipe, key, value)
            entry = Entry(
                "",
                _mark(recipe),
                title,
                {key: _plain(value) for key, value in chosen.items()},
                _method(recipe),
                _problem(recipe, chosen),
                _seed(chosen, recipe),
            )
            if run is not None and entry.mark == _mark(run.recipe) and (run.folder / "result.json").exists():
                made.there[entry.mark] = run
            if entry.mark not in made.ready:
                made.ready[entry.mark] = recipe
                made.entries.append(entry)
    name(made.entries)
    return made


def labels(entries: Sequence[Entry]) -> dict[str, Label]:
    """By mark, where each run belongs: named by what varies among the runs, and by nothing else."""
    problems = _problems(entries)
    where = {entry.mark: called for entry, called in zip(entries, problems)}
    keys = [key for key in _varied([e.settings for e in entries]) if not _is(key, PROBLEM) and not _is_seed(key)]
    ways = {e.mark: _said(e.settings["method"]) if "method" in e.settings else e.method for e in entries}
    told = {(where[e.mark], e.recipe, ways[e.mark]) for e in entries}
    several = len({(problem, recipe) for problem, recipe, _ in told}) > len(set(problems))
    alike = len({(problem, way) for problem, _, way in told}) < len(told)  # so that methods do not tell recipes apart
    found = {}
    for entry in entries:
        parts = {"recipe": entry.recipe} if alike else {"method": ways[entry.mark]} if several else {}
        for key in keys:
            if entry.method == ALONE and _is(key, ("teacher",)):
                continue  # the same run, whoever does not teach
            if key == "method":
                parts[key] = ways[entry.mark]
            elif key in entry.settings:
                parts[key] = _said(entry.settings[key])
        shown = [value if key in ("method", "recipe") else f"{key}={value}" for key, value in parts.items()]
        found[entry.mark] = Label(where[entry.mark], ", ".join(shown) or entry.method, tuple(parts.items()))
    return found


def baseline(label: Label, method: str, others: Mapping[Label, str], base: str) -> Label | None:
    """The arm of method `base` that differs from this one in nothing else that is named, if there is one.

    Args:
        others: the arms with their methods.
    """
    if method in (base, ALONE):
        return None
    own = set(label.parts)
    found = [
        other
        for other, its in others.items()
        if its == base
        and other.problem == label.problem
        and all(part in own for part in other.parts if part[0] not in ("method", "recipe"))
    ]
    recipe = dict(label.parts).get("recipe")
    return next((other for other in found if dict(other.parts).get("recipe") == recipe), next(iter(found), None))


def name(entries: Sequence[Entry]) -> None:
    """Give every run without a name the name of its folder."""
    told, taken = labels(entries), {entry.name for entry in entries}
    for entry in entries:
        if not entry.name:
            label = told[entry.mark]
            wanted = slug("-".join(filter(None, (label.problem, label.arm, entry.seed))))
            while wanted in taken:
                wanted = _next(wanted, "~")
            entry.name = wanted
            taken.add(wanted)


def slug(words: str) -> str:
    """Words as the name of a folder; where that would be long, its beginning and a fingerprint."""
    short = re.sub(r"[^\w.=+~-]+", "-", words).strip("-.") or "run"
    return short if len(short) <= 80 else f"{short[:70]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def _opened(source: Source | Run) -> tuple[Recipe, str, Run | None]:
    if isinstance(source, Run) or (not isinstance(source, Recipe) and (Path(source) / "recipe.yaml").is_file()):
        run = source if isinstance(source, Run) else Run(source)
        return run.recipe, run.folder.name, run
    recipe = source if isinstance(source, Recipe) else Recipe.load(source, partial=True)
    return recipe, recipe.name, None


def _add(recipes: dict[str, dict[str, Any]], title: str, mapping: dict[str, Any]) -> str:
    """A recipe under a title of its own, or that of one which differs in nothing but the seed."""
    for known, other in recipes.items():
        if all(said.startswith("seed is ") for said in difference(other, mapping)):
            return known
    while title in recipes:
        title = _next(title)
    recipes[title] = mapping
    return title


def _changed(recipe: Recipe, key: str, value: Any) -> Recipe:
    names = [part.strip() for part in key.split(",")]
    own = len(names) > 1 and isinstance(value, (list, tuple)) and len(value) == len(names)
    for one, given in zip(names, value if own else [value] * len(names)):
        if "." not in one:
            recipe = recipe.with_keys({one: given})
        elif next(absent(revive(spell(given))), None) is not None:
            raise RecipeError(f"vary: {one} cannot hold an object; give the whole key {one.partition('.')[0]}.")
        else:
            recipe = recipe.with_settings(f"{one}={text.phrase(spell(given))}")
    return recipe


def _mark(recipe: Recipe) -> str:
    return (recipe.with_keys({"teacher": None}) if _method(recipe) == ALONE else recipe).fingerprint()


def _method(recipe: Recipe) -> str:
    if recipe.stages or recipe.members:
        trains_the_teacher = isinstance(recipe.method, Mapping) and recipe.method.get("who") == "teacher"
        return recipe.method_name() + (" (teacher)" if trains_the_teacher else "")
    return ALONE if recipe.teacher is None else "the default"


def _problem(recipe: Recipe, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What may tell the problems of two recipes apart, without what varies with the seed."""
    keys = recipe.to_mapping()
    data, task, student = (keys.get(key) or {} for key in ("data", "task", "student"))
    drawn = {"data.args.seed", *(part for key in chosen if _is_seed(key) for part in key.split(","))}
    args = {key: value for key, value in (data.get("args") or {}).items() if f"data.args.{key}" not in drawn}
    found = {f"data.{key}": value for key, value in (data | {"args": args}).items() if f"data.{key}" not in drawn}
    found |= {f"task.{key}": task.get(key) for key in ("use", "target", "metric")} | {"sees": student.get("view")}
    return json.loads(json.dumps(found, default=str))


def _seed(chosen: Mapping[str, Any], recipe: Recipe) -> str:
    """The seed of the recipe, and whatever else is repeated with other draws."""
    more = [_said(spell(value)) for key, value in chosen.items() if _is_seed(key) and "seed" not in key.split(",")]
    return "-".join([str(recipe.seed), *more])


def _plain(value: Any) -> Any:
    """A value as plain data; a method that was given as an object is its name with the options that were set."""
    if isinstance(value, (Method, Procedure)) and not isinstance(value, Sum):
        return {"use": name_of(type(value))} | value.options(all=False)
    return json.loads(json.dumps(spell(value), default=str))


def _is(key: str, sections: Sequence[str]) -> bool:
    """Whether the key (of several the first) is one of these or a part of it."""
    first = key.split(",")[0]
    return any(first == one or first.startswith(f"{one}.") for one in sections)


def _is_seed(key: str) -> bool:
    return key.split(",")[0].split(".")[-1] == "seed"


def _varied(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that do not have the same value everywhere."""
    keys = dict.fromkeys(key for one in told for key in one)
    return [key for key in keys if len({json.dumps(one.get(key, "?"), sort_keys=True) for one in told}) > 1]


def _problems(entries: Sequence[Entry]) -> list[str]:
    """What tells the problems apart, in a few words; nothing where there is only one."""
    keys = _varied([entry.problem for entry in entries])
    return [
        ", ".join(
            _said(entry.problem.get(key)) if key == "data.path" else f"{key} {_said(entry.problem.get(key))}"
            for key in keys
        )
        for entry in entries
    ]


def _said(value: Any) -> str:
    """A value in the name of an arm: `kd`, `kd temperature=2`, `kd + rkd`."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "use" in one for one in value):
        return " + ".join(map(_said, value))
    if isinstance(value, Mapping) and "use" in value:
        return " ".join([str(value["use"]), *(f"{key}={_said(one)}" for key, one in value.items() if key != "use")])
    return value if isinstance(value, str) else text.phrase(value)


def _next(title: str, sign: str = "-") -> str:
    match = re.fullmatch(rf"(.*){re.escape(sign)}(\d+)", title)
    return f"{match[1]}{sign}{int(match[2]) + 1}" if match else f"{title}{sign}2"
