"""timm: `{model: "timm:create_model", args: {model_name: resnet18, num_classes: 10}}`."""

from __future__ import annotations

from typing import Any

from limbeck.models.adapters.columns import last_linear, picture_view
from limbeck.sources import Source


def settle(source: Source) -> None:
    """`embedding` is what the classifier reads; pictures are standardised and sized as the model's `pretrained_cfg` says."""
    model: Any = source.model
    facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    head = facts.get("classifier") or last_linear(model)
    if not source.taps and isinstance(head, str) and head in dict(model.named_modules()):
        source.taps = {"embedding": f"{head}:input"}
    size = list(facts.get("input_size") or ())[1:] if facts.get("fixed_input_size") else None
    source.view_for = source.view_for or (
        lambda columns: picture_view(columns, None, facts.get("mean"), facts.get("std"), size)
    )
