"""A student that answers through its teacher's classifier: the projector, the classifier, and the operation that puts them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.bridges.as_map import as_map
from limbeck.bridges.base import Bridge, Shape
from limbeck.bridges.maps import Resample
from limbeck.errors import RecipeError
from limbeck.signals import Place, Tap, select

# What may stand between a network's last map and its linear classifier.
TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "flatten": lambda x: x.flatten(1),
}


class Projector(Bridge):
    """A bottleneck of convolutions from the student's features to the teacher's map; it ships with the student.

    1x1 to channels / reduction, 3x3, 1x1 to channels, each with batch normalisation and ReLU (the last ReLU only where
    the teacher's features are never negative). Whatever the student's features are, they are first laid out as a map of
    `size` positions; on a map of one pixel a 3x3 kernel sees only its middle, so it is a 1x1 one.

    Source: Chen et al. 2022, "Knowledge distillation with the reused teacher classifier", section 3.3.
    """

    ships = True

    def __init__(self, student: Shape, channels: int, size: tuple[int, int], *, reduction: int, positive: bool):
        super().__init__()
        self.lay, (width, *_) = as_map(student)
        self.resample = Resample(size)
        inner, kernel = max(channels // reduction, 1), 3 if max(size) > 1 else 1
        sizes = [(width, inner, 1), (inner, inner, kernel), (inner, channels, 1)]
        steps: list[nn.Module] = []
        for before, after, k in sizes:
            steps += [nn.Conv2d(before, after, k, padding=k // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.steps = nn.Sequential(*(steps if positive else steps[:-1]))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch channels height width"]:
        return self.steps(self.resample(self.lay(x)))

    def words(self) -> str:
        return "a bottleneck of three convolutions"


class Lent:
    """What a module said in the forward pass under way, for one reader that comes later; a hook.

    An object beside the network, shared by hook and reader, so that a deep copy of the network has one of its own and
    neither parameters nor names change.
    """

    def __init__(self, place: Place):
        self.place = place
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, *output: Any) -> None:
        self.value = select(output[0] if output else args[0], self.place.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "value": None}  # a value belongs to a pass, with its graph, and not to a copy

    def attach(self, model: nn.Module) -> Lent:
        """Listen at the place in `model`."""
        module = model.get_submodule(self.place.module)
        (module.register_forward_pre_hook if self.place.input else module.register_forward_hook)(self)  # type: ignore[operator]
        return self

    def take(self) -> Tensor:
        """The value, which is then forgotten.

        Raises:
            RecipeError: this pass did not come by the place.
        """
        value, self.value = self.value, None
        if value is None:
            raise RecipeError(
                f"the student's '{self.place.module}' was not run before its classifier, which reads it. Name a place that is: method.layers"
            )
        return value


class ReusedClassifier(nn.Module):
    """Stands where the student's classifier stood: projector, pooling, and the teacher's linear layer, which never learns."""

    def __init__(self, projector: Projector, tail: str, classifier: nn.Linear, lent: Lent | None):
        super().__init__()
        self.projector, self.tail = projector, tail
        self.classifier = classifier.requires_grad_(False)
        self.lent = lent
        self.projected = Lent(Place("", (), False)).attach(projector)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        """`x` is what the student's own classifier was given; read where the features are exactly that."""
        projected = self.projector(x if self.lent is None else self.lent.take())
        return self.classifier(TAILS[self.tail](projected))


def reuse(
    model: nn.Module,
    *,
    classifier: str,
    features: str | None,
    shape: Sequence[int],
    channels: int,
    size: Sequence[int],
    tail: str,
    inputs: int,
    classes: int,
    bias: bool,
    reduction: int,
    positive: bool,
) -> None:
    """Put a `ReusedClassifier` with new weights into `model`, in the place of its `classifier`.

    Args:
        classifier: the path of the layer that is replaced.
        features: the place in the student that the projector reads, None for the input of the classifier.
        shape: of these features, without the batch.
        channels, size: of the teacher's map (a vector is a map of one pixel).
        tail: what stands between map and classifier, of `TAILS`.
        inputs, classes, bias: of the teacher's linear classifier.
        reduction, positive: see `Projector`.
    """
    old = model.get_submodule(classifier)
    projector = Projector(tuple(shape), channels, (size[0], size[1]), reduction=reduction, positive=positive)
    lent = None if features is None else Lent(Tap(features).resolve(model)).attach(model)
    head = ReusedClassifier(projector, tail, nn.Linear(inputs, classes, bias=bias), lent)
    head.train(old.training)
    model.set_submodule(classifier, head.to(next(model.parameters()).device))
