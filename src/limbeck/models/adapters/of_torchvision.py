"""torchvision: `{model: "torchvision.models:resnet18", args: {weights: IMAGENET1K_V1}}`."""

from __future__ import annotations

from typing import Any

from limbeck.models.adapters.columns import last_linear, picture_view
from limbeck.sources import Source


def settle(source: Source) -> None:
    """`embedding` is what the last linear layer reads; with pretrained weights, class names and preprocessing are theirs."""
    head = last_linear(source.model)
    if not source.taps and head is not None:
        source.taps = {"embedding": f"{head}:input"}
    weights = _weights(source)
    if weights is not None and source.labels is None:
        source.labels = [str(name) for name in weights.meta.get("categories") or []] or None
    made: Any = weights.transforms() if weights is not None else None
    mean, std = (getattr(made, "mean", None), getattr(made, "std", None))
    crop = getattr(made, "crop_size", None)
    size = [int(crop[0]), int(crop[-1])] if crop else None
    source.view_for = source.view_for or (lambda columns: picture_view(columns, None, mean, std, size))


def _weights(source: Source) -> Any:
    """The entry of the weights that the arguments name; None for fresh ones."""
    spec = source.spec or {}
    given = spec.get("args", {}).get("weights")
    if not given:
        return None
    import torchvision

    name = spec["model"].rpartition(":")[2].rpartition(".")[2]
    kind = torchvision.models.get_model_weights(name)
    return kind[given] if given in kind.__members__ else kind.DEFAULT if given == "DEFAULT" else None
