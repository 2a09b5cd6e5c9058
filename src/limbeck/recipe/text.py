"""Recipes as text: YAML read by the rules of version 1.2, and written so that readers of 1.1 agree.

PyYAML reads YAML 1.1, where `yes`, `no`, `on` and `off` are booleans, `1e-3` is a string, `010` is eight and `12:30` is
750. Labels and learning rates need the rules of 1.2 (https://yaml.org/spec/1.2.2, section 10.3, the core schema).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from limbeck.errors import RecipeError

WIDTH = 120
_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    (f"{_TAG}null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    (f"{_TAG}bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (f"{_TAG}int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    (
        f"{_TAG}float",
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        list("-+0123456789."),
    ),
)


class _Loader(yaml.SafeLoader):
    """Plain data only, by the core schema of YAML 1.2; a key that stands twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(name, Hashable):
                raise yaml.MarkedYAMLError(problem="a key is a word or a number here", problem_mark=key.start_mark)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{name}' stands twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)  # type: ignore[arg-type]

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = str(node.value)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(str(node.value).lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either version of YAML would take for something else."""

    yaml_implicit_resolvers = {first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent(self, data: Any) -> None:
        node = self.represent_data(data)
        node.flow_style = False  # type: ignore[attr-defined]  # the outermost mapping has a line per key, however little it holds
        self.serialize(node)

    def represent_text(self, data: str) -> yaml.ScalarNode:
        escaped = any(mark in data for mark in "\x85\u2028\u2029")  # line ends of 1.1, which single quotes would lose
        return self.represent_scalar(f"{_TAG}str", data, style='"' if escaped else None)


class _Flow(_Dumper):
    """The same on one line."""

    def represent(self, data: Any) -> None:
        self.serialize(self.represent_data(data))


for _tag, _pattern, _firsts in _SCALARS:
    whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(_tag, whole, _firsts)
    _Dumper.add_implicit_resolver(_tag, whole, _firsts)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_float)
_Dumper.add_representer(str, _Dumper.represent_text)


def read(text: str, source: str) -> Any:
    """The data that a YAML text stands for; `source` names it in messages.

    Raises:
        RecipeError: it is no YAML, a key stands twice, or it holds more than plain data; the line is named.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark and "\n" in text.rstrip("\n") else ""
        raise RecipeError(f"{source}{line}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source} cannot be read as YAML: {' '.join(str(error).split())}.") from error


def write(data: Mapping[str, Any]) -> str:
    """Plain data as YAML: keys in their order, what holds no further mapping or list on one line."""
    return yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=WIDTH, allow_unicode=True
    )


def phrase(value: Any) -> str:
    """A value as one would type it after `key=`."""
    written = yaml.dump(
        [value], Dumper=_Flow, sort_keys=False, default_flow_style=True, width=10**9, allow_unicode=True
    )
    return str(written).strip()[1:-1]
