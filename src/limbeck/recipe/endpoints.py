"""The key `teacher` where the teacher is asked over the network: `{endpoint, model, prompt, labels, price, ...}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from limbeck.actors import Actor
from limbeck.errors import RecipeError
from limbeck.recipe.networks import TeacherKeys
from limbeck.recipe.sections import Section
from limbeck.teachers.asking import Price
from limbeck.teachers.endpoint import Endpoint

if TYPE_CHECKING:
    from limbeck.language.tokens import Tokens

A = TypeVar("A", bound=Actor)

_OF_A_NETWORK = ("args", "weights", "taps", "dtype", "quantize", "device")


class EndpointKeys(TeacherKeys):
    """A model behind an OpenAI-compatible server; what the keys mean, `limbeck.teachers.endpoint.Endpoint` says."""

    endpoint: str
    prompt: str | None = None
    price: Annotated[dict[str, float] | None, BeforeValidator(lambda value: _price(value))] = None
    top_logprobs: Annotated[int, Field(ge=1)] = 20
    classes: Annotated[int, Field(ge=2)] | None = None
    certainty: Annotated[float, Field(gt=0, le=1)] = 1.0
    unknown: Literal["refuse", "uniform"] = "refuse"
    concurrency: Annotated[int, Field(ge=1)] = 8
    timeout: Annotated[float, Field(gt=0)] = 120.0
    tries: Annotated[int, Field(ge=1)] = 6
    journal: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _none_of_a_network(cls, value: Any) -> Any:
        for key in _OF_A_NETWORK if isinstance(value, Mapping) else ():
            if value.get(key):
                raise RecipeError(
                    f"teacher.{key} is for a network that runs here, and this teacher answers over the network. Leave out teacher.{key} or teacher.endpoint."
                )
        return value

    @field_validator("journal", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return value if value is None else str(value)

    def names(self) -> list[str]:
        """The keys that mean something here, in the order of the file."""
        first = ["endpoint", "model"]
        return first + [name for name in type(self).model_fields if name not in (*first, *_OF_A_NETWORK)]

    def plain(self) -> dict[str, Any]:
        found = Section.plain(self)
        found["model"] = self.model.server.model if isinstance(self.model, Endpoint) else self.model
        return {name: found[name] for name in self.names()}

    def tree(self) -> dict[str, Any]:
        found = super().tree()
        return {name: found[name] for name in self.names()}

    def tokens(self) -> Tokens | None:
        """Its tokenizer, where one was named; there is no folder beside which it could lie."""
        if isinstance(self.model, Actor):
            return self.model.tokenizer
        if self.tokenizer is None:
            return None
        from limbeck.language.tokens import Tokens

        return Tokens.load(self.tokenizer)

    def context(self) -> int | None:
        """Not known."""
        return None

    def build(self, kind: type[A], where: str, seed: int) -> A:
        """The endpoint; nothing is asked yet.

        Raises:
            RecipeError: options that do not fit together.
        """
        if isinstance(self.model, Actor):
            return self.model  # type: ignore[return-value]
        given = {name: getattr(self, name) for name in self.names()}
        return Endpoint(**given)  # type: ignore[return-value]


def _price(value: Any) -> Any:
    if value is None:
        return None
    price = Price.of(value)
    return {"input": price.input, "output": price.output}
