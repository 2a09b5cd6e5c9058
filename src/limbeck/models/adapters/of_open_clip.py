"""open_clip: `{model: "open_clip:create_model", args: {model_name: ViT-B-32, pretrained: laion2b_s34b_b79k}}`."""

from __future__ import annotations

from typing import Any

from limbeck.models.adapters.columns import picture_view
from limbeck.sources import Source


def settle(source: Source) -> None:
    """`embedding` is the picture's; pictures are standardised and sized as the visual tower says."""
    model: Any = source.model
    visual = getattr(model, "visual", None)
    if visual is None:
        return
    if not source.taps:
        named = getattr(model, "output_dict", False)
        source.taps = {"embedding": "output.image_features" if named else "output.0"}
    size = getattr(visual, "image_size", None)
    size = [size, size] if isinstance(size, int) else list(size) if size else None
    mean, std = getattr(visual, "image_mean", None), getattr(visual, "image_std", None)
    source.view_for = source.view_for or (lambda columns: picture_view(columns, "image", mean, std, size))
