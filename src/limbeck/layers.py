"""Which layers are compared: named by the user, or proposed from what a student and a teacher compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor, nn

from limbeck.actors import Actor, Teacher
from limbeck.errors import RecipeError
from limbeck.method import Transfer, name_of
from limbeck.signals import Tap

EMBEDDING, LOGITS = "embedding", "logits"
_CLASSIFIERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Heard:
    """What one submodule gave in a forward pass: the tap for it, the module and where it stands, and the value itself."""

    path: str
    where: str
    module: nn.Module
    value: Tensor

    @property
    def positions(self) -> tuple[int, ...]:
        """Its height and width, its number of tokens, or () for a vector; a map of one pixel is a vector."""
        shape = self.value.shape[1:]
        places = shape[1:] if len(shape) > 2 else shape[:-1]
        return tuple(places) if any(n > 1 for n in places) else ()


def hear(actor: Actor, batch: Mapping[str, Any]) -> tuple[list[Heard], Tensor | None]:
    """Every submodule's value in the order in which they end, and the logits; the model is left as it was."""
    heard: list[Heard] = []
    handles = []
    for path, module in actor.model.named_modules():

        def note(module: nn.Module, args: Any, value: Any, path: str = path) -> None:
            first = 0 if isinstance(value, (tuple, list)) and value else None
            tensor = value[first] if first is not None else value
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() > 1:
                heard.append(Heard(path if first is None else f"{path}.{first}", path, module, tensor))

        if path:
            handles.append(module.register_forward_hook(note))
    modes = [(module, module.training) for module in actor.model.modules()]
    actor.model.eval()
    try:
        with torch.no_grad():
            signals = actor(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    logits = signals.get("logits")
    return heard, logits if isinstance(logits, Tensor) else None


def embedding_path(actor: Actor, batch: Mapping[str, Any]) -> str:
    """Where the last layer before the logits gets its input, as `path:input`.

    Raises:
        RecipeError: no linear layer (or 1x1 convolution) gives the logits.
    """
    return f"{classifier_path(actor, batch)}:input"


def classifier_path(actor: Actor, batch: Mapping[str, Any]) -> str:
    """The linear layer (or convolution) that gives the logits: the last one whose value they are, or have the width of.

    Raises:
        RecipeError: there is none.
    """
    heard, logits = hear(actor, batch)
    candidates = [h for h in heard if isinstance(h.module, _CLASSIFIERS)]
    if logits is not None:
        exact = [h for h in candidates if h.value is logits]
        alike = [h for h in candidates if h.value.shape == logits.shape]
        candidates = exact or alike
    if not candidates:
        raise RecipeError(
            f"no linear layer of the {actor.whose} ({type(actor.model).__name__}) gives its logits, so its embedding cannot be found. "
            f"Name it: {actor.whose}.taps={{embedding: path}} (limbeck inspect MODEL lists the paths)"
        )
    return candidates[-1].path


def stages(actor: Actor, batch: Mapping[str, Any], most: int = 4) -> list[str]:
    """One place per resolution, the last of each, from the input on; at most `most`, the last ones.

    A network that keeps its resolution (a transformer, an isotropic mixer) is cut into `most` equal runs of blocks; one
    that only has vectors gives the inputs of its linear layers.

    Raises:
        RecipeError: nothing inside it can be listened to.
    """
    heard, logits = hear(actor, batch)
    size = len(next(v for v in batch.values() if isinstance(v, Tensor)))
    inner = [h for h in _distinct(heard) if h.value is not logits and len(h.value) == size]
    runs = [list(run) for places, run in groupby(inner, key=lambda h: h.positions) if places]
    tokens = [run for run in runs if run[0].value.dim() == 3]
    runs = tokens or runs  # the map before the tokens is how they were made
    if len(runs) == 1:
        return _even(_blocks(runs[0], heard), most)
    if runs:
        return [run[-1].path for run in runs][-most:]
    linear = [h for h in heard if isinstance(h.module, nn.Linear)]
    if len(linear) < 2:
        raise RecipeError(
            f"no layers can be proposed for the {actor.whose} ({type(actor.model).__name__}): none of its submodules gives maps, tokens or hidden vectors. "
            "Name them: method.layers=[[student place, teacher place], ...]"
        )
    return [f"{h.path}:input" for h in linear[1:]][-most:]


def _distinct(heard: list[Heard]) -> list[Heard]:
    """Each value once, under the shortest path that gives it (a block rather than its last activation)."""
    best: dict[int, Heard] = {}
    for h in heard:
        known = best.get(id(h.value))
        if known is None or h.where.count(".") < known.where.count("."):
            best[id(h.value)] = h
    return list(best.values())


def _blocks(run: list[Heard], heard: list[Heard]) -> list[str]:
    """The largest family of siblings of one class, as `blocks.0`, `blocks.1`, ...; every place where there is none.

    The last of them may give the very value of the container around them, so they are looked for among all that was heard.
    """
    families: dict[tuple[str, type], list[str]] = {}
    values = {id(h.value) for h in run}
    for h in heard:
        parent, _, last = h.where.rpartition(".")
        if last.isdigit() and id(h.value) in values:
            families.setdefault((parent, type(h.module)), []).append(h.path)
    family = max(families.values(), key=lambda paths: (len(paths), -paths[0].count(".")), default=[])
    return family if len(family) > 1 else [h.path for h in run]


def _even(places: list[str], most: int) -> list[str]:
    count = min(most, len(places))
    return [places[-(-(i + 1) * len(places) // count) - 1] for i in range(count)]


def _pairs_given(value: Any) -> Any:
    """A list of `name` (the same on both sides) or `[student's, teacher's]`."""
    if value is None:
        return None
    listed = value if isinstance(value, (list, tuple)) else [value]
    pairs = [[entry, entry] if isinstance(entry, str) else list(entry) for entry in listed]
    if not pairs or any(len(pair) != 2 or not all(isinstance(name, str) for name in pair) for pair in pairs):
        raise ValueError("needed is a list of places, or of [student place, teacher place]")
    return pairs


Pairs = Annotated[list[tuple[str, str]], BeforeValidator(_pairs_given)]


class LayerTransfer(Transfer):
    """A transfer that compares layers. `layers` names pairs of places (taps or module paths); None: proposed, and said.

    `proposes` says what a subclass takes when nothing is named: the `embedding` (the input of the last linear layer),
    the last `map` (or sequence of tokens), or `stages`: one place per resolution, at most `most`, paired from the end.
    """

    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "stages"
    most: ClassVar[int] = 4

    layers: Pairs | None = None

    def prepare(self) -> None:
        """Settle `self.pairs`, the names of the signals to compare, and listen there."""
        given = self.layers
        pairs = given if given is not None else self._stored() or self._proposed()
        self.pairs = [
            (listen(self.student, ours), listen(self.teacher, theirs) if self.teacher is not None else theirs)
            for ours, theirs in pairs
        ]
        if given is None:
            told = ", ".join(f"{self._place(self.student, s)} -> {self._place(self.teacher, t)}" for s, t in self.pairs)
            self.notices.append(f"layers compared (student -> teacher): {told}. Others: method.layers=[[place, place]]")

    def _stored(self) -> list[tuple[str, str]] | None:
        """The pairs for which a stored teacher was asked, so that the method is the same with it; None for others."""
        known = getattr(self.teacher, "paired", {}).get(name_of(type(self)), [])
        if not known or any(path != self.student.paths.get(ours, path) for ours, path, _ in known):
            return None
        try:
            for _, path, _ in known:
                Tap(path).resolve(self.student.model)
        except RecipeError:
            return None  # another student: its places are proposed anew
        for ours, path, _ in known:
            self.student.tap(ours, path)
        return [(ours, theirs) for ours, _, theirs in known]

    def _proposed(self) -> list[tuple[str, str]]:
        split = self.data.splits["train"]
        batch = split.__getitems__(list(range(min(2, len(split)))))
        if self.proposes == "embedding":
            return [(embedding(self.student, batch), embedding(self.teacher, batch))]
        most = 1 if self.proposes == "map" else self.most
        count = min(len(_places(actor, batch, most)) for actor in (self.student, self.teacher))
        ours, theirs = (_places(actor, batch, count) for actor in (self.student, self.teacher))
        return list(zip(ours, theirs))

    @staticmethod
    def _place(actor: Actor, name: str) -> str:
        return actor.paths.get(name, name)


def listen(actor: Actor, name: str) -> str:
    """Tap a place that has no name yet; gives the name of its signal."""
    held = getattr(actor, "holds", None)
    if held is not None or name in actor.paths or name in actor.shapes or name == LOGITS:
        return name
    several = isinstance(actor, Teacher) and len(actor.members) > 1
    actor.tap(name, name.partition(".")[2] if several else name)
    return name


def embedding(actor: Actor, batch: Mapping[str, Any]) -> str:
    """The name under which the actor's embedding is heard; found, and tapped as `embedding`, where it has none."""
    if EMBEDDING not in (getattr(actor, "holds", None) or actor.paths):
        one_network(actor)
        actor.tap(EMBEDDING, embedding_path(actor, on_device(actor, batch)))
    return EMBEDDING


def _places(actor: Actor, batch: Mapping[str, Any], most: int) -> list[str]:
    held = getattr(actor, "holds", None)
    if held is not None:
        return [name for name in held if name not in (LOGITS, EMBEDDING)][-most:]
    one_network(actor)
    return stages(actor, on_device(actor, batch), most)


def one_network(actor: Actor) -> None:
    """Refuse to look for layers in several networks at once.

    Raises:
        RecipeError: a mixture of several teachers, or signals that were stored without what is looked for.
    """
    if getattr(actor, "holds", None) is not None:
        raise RecipeError(
            f"the stored {actor.whose} holds {', '.join(actor.holds)} only. Cache what is compared too: cache.signals=[logits, embedding]"  # type: ignore[attr-defined]
        )
    if isinstance(actor, Teacher) and len(actor.members) > 1:
        names = list(actor.members)
        raise RecipeError(
            f"layers cannot be proposed for several teachers ({', '.join(names)}): name them, method.layers=[[student place, {names[0]}.place]], "
            f"with teacher.members.{names[0]}.taps={{place: path}}"
        )


def its_own_network(teacher: Teacher, why: str) -> None:
    """Refuse a teacher whose layers cannot be looked at.

    Raises:
        RecipeError: several teachers, or stored answers; `why` begins the sentence.
    """
    several = teacher.members.get("teacher") is not teacher  # a mixture, if only of one
    if several or getattr(teacher, "holds", None) is not None:
        given = "several teachers" if several else "answers that were stored"
        raise RecipeError(f"{why}; given are {given}. Give one network: teacher.model=...")


def on_device(actor: Actor, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch where the actor's parameters are."""
    device = next((p.device for p in actor.model.parameters()), torch.device("cpu"))
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


__all__ = [
    "LayerTransfer",
    "classifier_path",
    "embedding",
    "embedding_path",
    "hear",
    "its_own_network",
    "listen",
    "on_device",
    "one_network",
    "stages",
]
