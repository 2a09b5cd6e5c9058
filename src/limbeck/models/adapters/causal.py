"""Language models of transformers: their logits as what goes into the head, and the head, never multiplied out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.signals import Head

_PROBE = 4
"""Tokens on which the head is compared with the model's own logits."""


def find(model: Any) -> tuple[Head, dict[str, str]] | None:
    """The head of a causal language model and the tap `hidden` on what it is given, where its logits are that product.

    That is tried out on a few tokens: a model that does more to its logits than the configuration's scale and soft cap
    multiplies out itself, and gets None.
    """
    accepted = inspect.signature(model.forward).parameters
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if "logits_to_keep" not in accepted or not isinstance(layer, nn.Linear) or layer.weight.is_meta:
        return None
    nothing = torch.zeros(0, dtype=torch.int64)  # an index of no position
    keywords: dict[str, Any] = {"logits_to_keep": nothing}
    if "use_cache" in accepted:
        keywords["use_cache"] = False
    config = model.config.get_text_config()
    divided = getattr(config, "logits_scaling", None)  # Granite
    multiplied = getattr(config, "logit_scale", None)  # Cohere
    scale = 1 / divided if divided else multiplied if isinstance(multiplied, (int, float)) else 1.0
    head = Head(float(scale), getattr(config, "final_logit_softcapping", None), keywords)
    body = _body(model, head)
    return None if body is None else (head, {"hidden": f"{body}.last_hidden_state"})


@torch.no_grad()
def _body(model: Any, head: Head) -> str | None:
    """The path of the submodule whose last hidden state, put through the head, gives the model's own logits."""
    prefix = model.base_model_prefix
    heard: dict[str, Any] = {}
    paths = [path for path in (prefix, f"{prefix}.decoder") if path in dict(model.named_modules())]
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: heard.update({path: out}))
        for path in paths
    ]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        own = model(input_ids=torch.arange(_PROBE, device=model.get_output_embeddings().weight.device)[None]).logits
    except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return None  # it wants more than tokens
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    for path in paths:
        hidden = getattr(heard.get(path), "last_hidden_state", None)
        if isinstance(hidden, Tensor):
            ours = head.of(model, hidden).materialise()
            if own.shape == ours.shape and torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-2):
                return path
    return None
