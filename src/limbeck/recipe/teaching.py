"""The key `method`: one way of teaching, a sum of several, or a procedure; each a name, a mapping or a live object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticSerializationError

from limbeck import methods
from limbeck.errors import RecipeError, nearest
from limbeck.method import Method, Procedure, Sum, Term, Terms, Transfer, name_of
from limbeck.recipe import terms
from limbeck.recipe.live import Absent, address, label, spell

Built = Method | Procedure
Member = dict[str, Any] | Built | Absent


def members(value: Any, where: str = "method") -> list[Member]:
    """What is added up, each with every option written out; one alone is a list of one, nothing the empty list.

    Raises:
        RecipeError: an unknown method or option, a value of the wrong type, something that cannot be added.
    """
    given = _flat(value, where)
    if len(given) == 1:
        return [_resolved(given[0], where)]
    found = [_resolved(member, f"{where}.{name(member)}") for member in given]
    for member in found[1:]:
        _count_the_task_once(member, name(found[0]), where)
    if found and not any(isinstance(member, Absent) for member in found):
        build(found, where)
    return found


def plain(found: Sequence[Member]) -> Any:
    """As the file has it: None, a mapping, or a list of them."""
    spelled = [spell(m) if isinstance(m, (dict, Absent)) else _plain(m) or {"live": label(_heart(m))} for m in found]
    for member in spelled[1:]:
        member.pop("task_weight", None)
    return None if not spelled else spelled[0] if len(spelled) == 1 else spelled


def opened(found: Sequence[Member]) -> Any:
    """The same with live objects in their places where they have no address."""
    kept = [m if isinstance(m, (dict, Absent)) else _plain(m) or m for m in found]
    return None if not kept else kept[0] if len(kept) == 1 else kept


def build(found: Sequence[Member], where: str = "method") -> Built:
    """The method itself; what was given in Python is given back, what has a name is made anew.

    Raises:
        RecipeError: a member that cannot be added, or one whose object a file cannot hold.
    """
    made = [_made(member, where) for member in found]
    return made[0] if len(made) == 1 else Sum(made)  # type: ignore[arg-type]  # refuses what cannot be added


def name(member: Member) -> str:
    """What people call it: the name on its card, or that of the loss function."""
    if isinstance(member, Absent):
        return member.label.split()[0]
    if isinstance(member, Terms):
        return member.terms_given[0].name
    if isinstance(member, (Method, Procedure)):
        return name_of(type(member))
    if isinstance(member.get("name"), str):
        return str(member["name"])
    kind = methods.find(member["use"])
    return kind.name if isinstance(kind, Term) else name_of(kind)


def is_called(member: Member, word: str) -> bool:
    """Whether `word` means this member of a sum: its name, or what stands behind the colon of its address."""
    use = member.get("use", "") if isinstance(member, dict) else ""
    return word in (name(member), use, use.rpartition(":")[2])


def whose(found: Sequence[str], where: str, option: str, value: Any) -> RecipeError:
    """What to say when an option of a sum belongs to nobody."""
    return RecipeError(
        f"{where} is the sum {' + '.join(found)}: say whose option it is, e.g. {where}.{found[0]}.{option}={value}"
    )


def _flat(value: Any, where: str) -> list[Member]:
    if value is None:
        return []
    if isinstance(value, Sum):
        return list(value.members.values())  # type: ignore[arg-type]
    if isinstance(value, (Method, Procedure, Absent)):
        return [value]
    if isinstance(value, Term):
        return [Terms(value)]
    if isinstance(value, (list, tuple)):
        return [member for entry in value for member in _flat(entry, where)]
    given = dict(value) if isinstance(value, Mapping) else {"use": value}
    use = given.pop("use", None)
    if callable(use):
        known = address(use)
        return [{"use": known} | given] if known else [_of_this_process(use, given, where)]
    if not isinstance(use, str):
        raise RecipeError(f"{where}: {value!r} names no method. Write {where}=kd, or {{use: kd, temperature: 2}}.")
    parts = [part.strip() for part in use.split("+")]
    if not all(parts):
        raise RecipeError(f"{where}: '{use}' has nothing to add on one side of a +.")
    if len(parts) > 1 and given:
        option, entry = next(iter(given.items()))
        raise whose(parts, where, option, spell(entry))
    return [{"use": part} | given for part in parts]


def _of_this_process(use: Any, options: dict[str, Any], where: str) -> Built:
    """A class or function that no other process could import, such as one of a notebook."""
    if not isinstance(use, type):
        return terms.build(use, options, where)
    if not issubclass(use, (Method, Procedure)):
        raise RecipeError(f"{where}: {use.__name__} is neither a Method nor a Procedure.")
    return use(**options)


def _resolved(member: Member, where: str) -> Member:
    """A mapping with every option checked and written out; anything else as it is."""
    if not isinstance(member, dict):
        return member
    kind = methods.find(member["use"])
    if not isinstance(kind, Term):
        known = kind.option_model().model_fields
        for key in member:
            if key != "use" and key not in known:
                raise RecipeError(
                    f"unknown key '{where}.{key}'. {nearest(key, known) if known else 'It has no options.'}"
                )
    return _plain(_made(member, where)) or member


def _made(member: Member, where: str) -> Built:
    if isinstance(member, Absent):
        raise member.refuse(where)
    if not isinstance(member, dict):
        return member
    options = {key: entry for key, entry in member.items() if key != "use"}
    kind = methods.find(member["use"])
    return terms.build(kind.function, options, where) if isinstance(kind, Term) else kind(**options)


def _plain(member: Built) -> dict[str, Any] | None:
    """`{use, options}` from which an equal one can be built; None where there is no such thing."""
    if isinstance(member, Terms):
        return terms.plain(member)
    kind = type(member)
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    if address(kind) is None or not all(p.kind == p.VAR_KEYWORD or p.name == "self" for p in parameters):
        return None
    try:
        return {"use": methods.address(kind)} | member.options()
    except PydanticSerializationError:  # an option that only lives in Python
        return None


def _heart(member: Built) -> Any:
    return member.terms_given[0].function if isinstance(member, Terms) else member


def _count_the_task_once(member: Member, first: str, where: str) -> None:
    """Drop the weight of the task where it is not used, and refuse one that somebody has set."""
    if isinstance(member, dict):
        given, kind = member.pop("task_weight", None), methods.find(member["use"])
        default = Transfer.task_weight if isinstance(kind, Term) else getattr(kind, "task_weight", None)
    elif isinstance(member, Transfer):
        given, default = member.task_weight, type(member).task_weight
    else:
        return
    if given is not None and spell(given) != spell(default):
        raise RecipeError(
            f"{where}.{name(member)}.task_weight is not used: a sum counts the task once, with the weight of its first "
            f"member. Write {where}.{first}.task_weight={spell(given)}"
        )
