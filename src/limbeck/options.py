"""Options are annotated class attributes, checked by pydantic: the same in Python, YAML and on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from limbeck.errors import RecipeError, nearest


class Options:
    """A class whose annotated attributes are its options. `KD(temperature=2)` sets one, anything else is refused."""

    _model: ClassVar[type[BaseModel] | None] = None

    @classmethod
    def option_model(cls) -> type[BaseModel]:
        """The pydantic model of this class's options, made on first use."""
        if "_model" not in cls.__dict__ or cls._model is None:
            hints = get_type_hints(cls, include_extras=True)
            fields: dict[str, Any] = {}
            for base in reversed(cls.__mro__):
                if not (issubclass(base, Options) and base is not Options):
                    continue
                for name in inspect.get_annotations(base):
                    if name.startswith("_") or get_origin(hints[name]) is ClassVar or hints[name] is ClassVar:
                        continue
                    fields[name] = (hints[name], getattr(cls, name, ...))
            config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)
            cls._model = create_model(cls.__name__, __config__=config, **fields)
        return cls._model

    def _take(self, given: Mapping[str, Any], name: str) -> None:
        model = self.option_model()
        for key in given:
            if key not in model.model_fields:
                known = f" {nearest(key, model.model_fields)}" if model.model_fields else " It has no options."
                raise RecipeError(f"unknown key '{key}' of {name}.{known}")
        try:
            values = model(**given)
        except ValidationError as error:
            raise RecipeError(" ".join(f"{name}.{say(problem)}" for problem in error.errors())) from error
        for key in model.model_fields:
            object.__setattr__(self, key, getattr(values, key))
        self._options = values

    def options(self, *, all: bool = True) -> dict[str, Any]:
        """The options as plain data, for a recipe file."""
        return self._options.model_dump(mode="json", exclude_defaults=not all)


def say(problem: Mapping[str, Any]) -> str:
    """One pydantic problem as half a sentence: where, what is needed, what was given."""
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("function-", "union")))
    what = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {what[:1].lower()}{what[1:]}, given was {problem.get('input')!r}."
