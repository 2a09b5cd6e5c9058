"""The keys `teacher` and `student`: what a network is, where its weights are, what it is shown, where one listens."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import nn

from limbeck.actors import Actor, Student, Teacher
from limbeck.errors import RecipeError
from limbeck.models.quantising import Bits
from limbeck.recipe.checking import validated
from limbeck.recipe.live import Absent, address, spell
from limbeck.recipe.sections import Arguments, Labels, Section, listed, word
from limbeck.sources import context_of, import_from, tokenizer_beside
from limbeck.teachers.endpoint import Endpoint
from limbeck.teachers.housed import Housed
from limbeck.teachers.mixture import Mixture
from limbeck.views import View

if TYPE_CHECKING:
    from limbeck.language.tokens import Tokens

A = TypeVar("A", bound=Actor)

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
Dtype = Annotated[
    Literal["fp32", "bf16", "fp16", "fp64"] | None,
    BeforeValidator(lambda value: _DTYPES.get(value, value) if isinstance(value, torch.dtype) else value),
]


def _model(value: Any) -> Any:
    """A model's address where it has one, else the object itself."""
    if isinstance(value, (nn.Module, Actor, Absent)) or (isinstance(value, str) and value):
        return value
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return address(value) or value
    raise RecipeError(f"a model is a path, module:attribute, or a torch module given in Python, not {value!r}.")


def _view(value: Any) -> Any:
    return value if value is None or isinstance(value, Absent) else View.of(value)


def _words(value: Any) -> Any:
    return {word(key): word(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value


class NetworkKeys(Section):
    """What teacher and student have in common."""

    model: Annotated[Any, BeforeValidator(_model)]
    args: Arguments = {}
    weights: str | None = None
    view: Annotated[Any, BeforeValidator(_view)] = None
    taps: Annotated[dict[str, str], BeforeValidator(lambda taps: taps or {})] = {}
    labels: Labels = None
    tokenizer: Annotated[
        str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
    ] = None

    @field_validator("weights", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    def spelled_model(self) -> Any:
        """The model as it is built anew: its address, or the object where it has none."""
        if isinstance(self.model, Actor):
            source = self.model.source
            return source.spec["model"] if source.spec else source.model
        return self.model

    def plain(self) -> dict[str, Any]:
        return super().plain() | {"model": spell(self.spelled_model())}

    def tokens(self) -> Tokens | None:
        """How this network writes texts as numbers: its `tokenizer`, or the one beside it; None where there is none."""
        if isinstance(self.model, Actor) and self.tokenizer is None:
            return self.model.tokenizer
        place = self.tokenizer or tokenizer_beside(self.model)
        if place is None:
            return None
        from limbeck.language.tokens import Tokens

        return Tokens.load(place)

    def context(self) -> int | None:
        """The most tokens that the network can read, as far as its configuration tells."""
        return context_of(self.model.model if isinstance(self.model, Actor) else self.model)

    def build(self, kind: type[A], where: str, seed: int) -> A:
        """The teacher or student itself; one that was given in Python is given back as it is.

        New weights are drawn from the seed and the place alone, whatever was drawn before.
        """
        if isinstance(self.model, Actor):
            assert isinstance(self.model, kind)
            return self.model
        for name in ("model", "view"):
            if isinstance(getattr(self, name), Absent):
                raise getattr(self, name).refuse(f"{where}.{name}")
        if isinstance(self.model, str) and ":" in self.model and not Path(self.model).exists():
            import_from(
                self.model, f"{where}.model"
            )  # a module that draws while it is imported does so before the seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(f"{seed}/{where}".encode()))  # 32 bits are all it takes
            return self._drawn(kind, where)

    def _drawn(self, kind: type[A], where: str) -> A:
        model, args = self.model, self.args
        if isinstance(model, nn.Module) and args:
            raise RecipeError(
                f"{where}.args were given, but {where}.model is a finished module, not a class or function."
            )
        if callable(model) and not isinstance(model, nn.Module):
            try:
                model, args = model(**args), {}
            except TypeError as error:
                raise RecipeError(f"{where}.args do not fit {getattr(model, '__name__', model)}: {error}.") from error
        return kind(model, **{"args": args or None, **self._rest()})

    def _rest(self) -> dict[str, Any]:
        return {
            "view": self.view,
            "taps": self.taps or None,
            "weights": self.weights,
            "labels": self.labels,
            "tokenizer": self.tokenizer,
        }


class LoraKeys(Section):
    """Low-rank adapters that learn in place of the network: what the keys mean, `limbeck.models.lora.adapt` says."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] | None = None
    targets: Annotated[list[str] | None, BeforeValidator(listed)] = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    whole: Annotated[list[str] | None, BeforeValidator(listed)] = None


class StudentKeys(NetworkKeys):
    """The network that learns; `layers` of a network of transformers stay, so many or those of these numbers."""

    layers: int | list[int] | None = None
    lora: LoraKeys | None = None
    dtype: Dtype = None

    def _rest(self) -> dict[str, Any]:
        lora = None if self.lora is None else self.lora.model_dump()
        return super()._rest() | {"dtype": self.dtype, "layers": self.layers, "lora": lora}


class TeacherKeys(NetworkKeys):
    """One network that teaches."""

    label_map: Annotated[str | dict[str, str], BeforeValidator(_words)] = "name"
    dtype: Dtype = None
    quantize: Bits | None = None
    device: Annotated[str | None, BeforeValidator(lambda value: None if value is None else str(value))] = None

    def _drawn(self, kind: type[A], where: str) -> A:
        if self.quantize is None and self.device is None:
            return super()._drawn(kind, where)
        return super()._drawn(Housed, where)  # type: ignore[arg-type, return-value]

    def _rest(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("quantize", "device") if getattr(self, name) is not None}
        return super()._rest() | {"label_map": self.label_map, "dtype": self.dtype} | own


class MixtureKeys(Section):
    """Several teachers by name: `{members: {name: teacher}, by: mean | confidence | a column}`."""

    members: Annotated[dict[str, Annotated[TeacherKeys, BeforeValidator(lambda x: _member(x))]], Field(min_length=1)]
    by: str = "mean"


def opened(value: Any) -> Any:
    """Every short form of a teacher or a student as the mapping it stands for."""
    if type(value) is Mixture:
        return {"members": {name: opened(member) for name, member in value.members.items()}, "by": value.by}
    if isinstance(value, Actor):
        return value.facts() if isinstance(value, Endpoint) else _facts(value)
    return value if isinstance(value, Mapping) or value is None else {"model": value}


def changeable(value: Any) -> Any:
    """The same, with the bare network in the place of a teacher or student object, so that its view can be changed."""
    found = opened(value)
    if isinstance(value, Endpoint):
        return found | {"model": value.server.model}
    if isinstance(found, dict) and isinstance(found.get("model"), Actor):
        return (
            found
            | {"model": found["model"].model, "args": {}, "weights": None}
            | ({"layers": None, "lora": None} if "layers" in found else {})
            | ({"quantize": None} if "quantize" in found else {})
        )
    return found


def _facts(actor: Actor) -> dict[str, Any]:
    """What the file says of a teacher or student object."""
    spec = actor.source.spec or {}
    weights = None if spec and Path(spec["model"]).exists() else actor.source.weights  # a run folder brings its own
    if weights is not None and weights.is_relative_to(Path.cwd()):
        weights = weights.relative_to(Path.cwd())
    dtype = next((p.dtype for p in actor.model.parameters() if p.is_floating_point()), torch.float32)
    facts = {
        "model": actor,
        "args": dict(spec.get("args", {})),
        "weights": None if weights is None else str(weights),
        "view": actor.view,
        "taps": dict(actor.paths),
        "labels": actor.labels,
        "tokenizer": None,
        "dtype": None if dtype == torch.float32 else _DTYPES.get(dtype),
    }
    if isinstance(actor, Teacher):
        device = getattr(actor, "device", None)
        housed = {"quantize": getattr(actor, "quantize", None), "device": None if device is None else str(device)}
        return facts | {"label_map": actor.label_map} | housed
    return facts | ({"layers": actor.layers, "lora": actor.lora} if isinstance(actor, Student) else {})


def kind_of(keys: Any) -> type[TeacherKeys]:
    """The section for one teacher: a network, or a model behind an endpoint."""
    if isinstance(keys, Mapping) and keys.get("endpoint") is not None:
        from limbeck.recipe.endpoints import EndpointKeys

        return EndpointKeys
    return TeacherKeys


def _member(value: Any) -> Any:
    keys = opened(value)
    kind = kind_of(keys)
    return keys if kind is TeacherKeys else validated(kind, keys, "teacher.members")


def teacher(keys: TeacherKeys | MixtureKeys, seed: int) -> Teacher:
    """The teacher of a recipe, or the mixture of its members."""
    if isinstance(keys, TeacherKeys):
        return keys.build(Teacher, "teacher", seed)
    members = {name: own.build(Teacher, f"teacher.members.{name}", seed) for name, own in keys.members.items()}
    return Mixture(members, by=keys.by)
