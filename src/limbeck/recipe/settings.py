"""Settings as on the command line: `key=` replaces, `key.part=` changes a part, at every depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError, nearest
from limbeck.recipe import networks, teaching, text
from limbeck.recipe.live import label, spell
from limbeck.recipe.rest import LimitKeys
from limbeck.recipe.sections import listed, open_data, open_task
from limbeck.schedules import Schedule
from limbeck.views import View

Tree = dict[str, Any]
Path = tuple[str, ...]

_EITHER = {"method": "stages", "stages": "method", "steps": "epochs", "epochs": "steps"}  # giving one clears the other


@dataclass(frozen=True)
class Setting:
    """`train.lr=1e-3` as path ("train", "lr") and value 0.001, with the value as it was typed."""

    path: Path
    value: Any
    typed: str

    @classmethod
    def of(cls, words: str) -> Setting:
        """Read a setting; its value by the rules of the file.

        Raises:
            RecipeError: no `=`, an empty key, or a value that is no YAML.
        """
        key, equals, typed = words.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise RecipeError(f"'{words}' is no setting. Write key=value, e.g. train.lr=1e-3")
        return cls(path, text.read(typed, words), typed)


def apply(tree: Mapping[str, Any], settings: Sequence[str], defaults: Mapping[str, Any]) -> Tree:
    """The tree of a recipe with settings put over it, in their order; `tree` itself stays as it is.

    Args:
        defaults: the tree of an empty recipe: what a part belongs to where the file is silent.

    Raises:
        RecipeError: no setting, an unknown first key, an option of a sum that belongs to nobody, a part of something
            that has none. What is wrong further down shows when the recipe is made.
    """
    changed: Tree = copied(tree)
    for words in settings:
        setting = Setting.of(words)
        if setting.path[0] not in defaults:
            raise unknown(setting.path[0], defaults)
        _change(changed, (), setting.path, setting, defaults)
    return changed


def unknown(key: str, keys: Iterable[str]) -> RecipeError:
    """What to say of a first key that is none."""
    section = next(
        (name for name, kind in (("train", TrainSettings), ("limit", LimitKeys)) if key in kind.model_fields), None
    )
    return RecipeError(
        f"unknown key '{key}'. " + (f"Did you mean '{section}.{key}'?" if section else nearest(key, keys))
    )


def copied(value: Any) -> Any:
    """Mappings and lists anew, what is in them as it is."""
    if isinstance(value, Mapping):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _change(node: Any, at: Path, rest: Path, setting: Setting, defaults: Any) -> None:
    """Put the setting's value at `rest` inside `node`, which stands at `at` in the recipe."""
    if isinstance(node, list):
        _change_entry(node, at, rest, setting)
        return
    key, more, here = rest[0], rest[1:], (*at, rest[0])
    if not more:
        node[key] = setting.value
        if key in _EITHER and at[-1:] in ((), ("train",)) and setting.value is not None:
            node[_EITHER[key]] = None
        return
    below = defaults.get(key) if isinstance(defaults, Mapping) else None
    given = node.get(key)
    if _is_method(here) and given is None:
        raise _no_method(node.get("stages"), here, more, setting)
    inner = node[key] = _opened(copied(below) if given is None else given, here)
    named = _is_method(here) and isinstance(inner, dict) and len(more) > 1 and more[0] not in inner
    if named and teaching.is_called(inner, more[0]):
        more = more[1:]
    _change(inner, here, more, setting, below)


def _change_entry(entries: list[Any], at: Path, rest: Path, setting: Setting) -> None:
    """Change the entry of a list that goes by a name, or is counted from 0."""
    word, where = rest[0], ".".join(at)
    names = [_name(entry, at) for entry in entries]
    method = _is_method(at)
    found = [i for i, entry in enumerate(entries) if names[i] == word or (method and teaching.is_called(entry, word))]
    found = found or [i for i in range(len(entries)) if str(i) == word]
    if not found and method:
        raise teaching.whose(names, where, ".".join(rest), setting.typed)
    if not found:
        raise RecipeError(f"{where} has no '{word}'. {nearest(word, names)}")
    if len(rest) == 1:
        entries[found[0]] = setting.value
        return
    entries[found[0]] = _opened(entries[found[0]], (*at, word))
    _change(entries[found[0]], (*at, word), rest[1:], setting, None)


def _opened(value: Any, at: Path) -> Any:
    """What stands at this place, as the mapping or list that its short form means."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, (Schedule, View)):
        value = value.spec()
    if _is_method(at):
        value = teaching.opened(teaching.members(value, ".".join(at)))
    elif at == ("task",):
        value = open_task(value)
    elif at == ("data",) and value is not None:
        value = open_data(value)
    elif at == ("stages",):
        value = listed(value)
    elif at in (("teacher",), ("student",)) or at[:-1] == ("teacher", "members"):
        value = networks.changeable(value)
    elif at[-1] == "view" and isinstance(value, (str, list)):
        value = {"keys": listed(value)}
    elif isinstance(value, str):
        value = {"use": value}
    if isinstance(value, (dict, list)) or value is None:
        return {} if value is None else value
    where = ".".join(at)
    if isinstance(value, (bool, int, float)):
        raise RecipeError(f"{where} is {spell(value)}, which has no parts. Give it whole: {where}=...")
    raise RecipeError(f"{where} is a {label(value)}; what it is made of is changed there.")


def _no_method(stages: Any, at: Path, rest: Path, setting: Setting) -> RecipeError:
    where, option = ".".join(at), f"{'.'.join(rest)}={setting.typed}"
    if stages:
        names = [_name(stage, ("stages",)) for stage in listed(stages)]
        return RecipeError(f"the recipe has stages: say whose method it is, e.g. stages.{names[-1]}.method.{option}")
    return RecipeError(
        f"{where}.{option} is an option of no method. Name the method first: {where}=kd {where}.{option}"
    )


def _is_method(at: Path) -> bool:
    return at == ("method",) or (at[0] == "stages" and len(at) == 3 and at[-1] == "method")


def _name(entry: Any, at: Path) -> str:
    if _is_method(at):
        return teaching.name(entry)
    return str(entry.get("name", entry.get("use"))) if isinstance(entry, Mapping) else str(entry)
