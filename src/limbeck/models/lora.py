"""Low-rank adapters: a network whose weights stay, and small matrices beside its linear layers that learn in their place.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685), section 4.1; layers by peft.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from limbeck.errors import RecipeError, nearest
from limbeck.models.adapters import family_of
from limbeck.models.adapters.columns import last_linear

_NAME = "default"


@dataclass(frozen=True)
class Adapted:
    """What `adapt` did to a network: noted in it, so that copies know.

    Attributes:
        frozen: the parameters that stopped learning.
        elsewhere: those of them that a file can give back, so that no checkpoint needs them.
    """

    frozen: frozenset[str] = field(default_factory=frozenset)
    elsewhere: frozenset[str] = field(default_factory=frozenset)


def adapt(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    whole: Sequence[str] | None = None,
    reloadable: bool = False,
) -> None:
    """Put adapters beside linear layers, in place: y = W x + alpha / rank * B A dropout(x), with B = 0 in the beginning.

    Only the adapters (in fp32 or better) and the modules in `whole` learn from then on.

    Args:
        rank: rows of A.
        alpha: None: as large as the rank, so that the factor is 1.
        targets: names of layers, or their last parts (`q_proj`); None: all linear layers but the head.
        whole: modules that learn as they are; None: the head of a classifier of transformers, which is often new.
        reloadable: whether the network's own weights come from a file.

    Raises:
        RecipeError: peft is missing, there is no such layer, or there are adapters already.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise RecipeError("student.lora needs the package peft: pip install 'limbeck[lora]'") from error
    if adapters(model):
        raise RecipeError(f"this {type(model).__name__} has low-rank adapters already; give student.lora once.")
    head = _classifier(model)
    learning = [*([head] if head else [])] if whole is None else [_named(model, name, "whole") for name in whole]
    chosen = _linear(model, {*learning, *_output(model)}) if targets is None else _matching(model, targets)
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]  # any number does
        target_modules=chosen,
        lora_dropout=dropout,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # it finds out by itself
        peft.inject_adapter_in_model(config, model, _NAME)  # type: ignore[arg-type]
    for name, p in model.named_parameters():
        if any(name.startswith(f"{own}.") for own in learning):
            p.requires_grad_(True)
        elif p.requires_grad and p.dtype in (torch.float16, torch.bfloat16):
            p.data = p.data.float()
    frozen = frozenset(name for name, p in model.named_parameters() if not p.requires_grad and _plain(name) in before)
    model.adapted = Adapted(frozen, frozen if reloadable else frozenset())  # type: ignore[assignment]


def adapters(model: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by name."""
    if not any(name.endswith(".base_layer") or name == "base_layer" for name, _ in model.named_modules()):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@torch.no_grad()
def merge(model: nn.Module) -> bool:
    """Add every adapter to the weights beside it and take it out, in place; gives whether there were any.

    The network is then what it was before `adapt`, with other weights: the same layers, names and parameters that learn.
    """
    found = adapters(model)
    for name, layer in found.items():
        layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    noted: Adapted = getattr(model, "adapted", Adapted())
    if found:
        frozen = {_plain(name) for name in noted.frozen}
        for name, p in model.named_parameters():
            if name in frozen:
                p.requires_grad_(True)
        if hasattr(model, "adapted"):
            del model.adapted
        for left in ("peft_config", "_hf_peft_config_loaded"):
            vars(model).pop(left, None)
    return bool(found)


def _plain(name: str) -> str:
    """What a parameter beside an adapter was called before."""
    return name.replace(".base_layer.", ".").removeprefix("base_layer.")


def _linear(model: nn.Module, without: set[str]) -> list[str]:
    found = [name for name, module in _layers(model) if name not in without]
    if not found:
        raise RecipeError(
            f"student.lora: {type(model).__name__} has no linear layer for an adapter. Train the whole network."
        )
    return found


def _matching(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """All layers that a target names: one of them, or every one whose name ends with it."""
    known, chosen = [name for name, _ in _layers(model)], []
    for target in targets:
        found = [name for name in known if name == target or name.endswith(f".{target}")]
        if not found:
            ends = dict.fromkeys(name.rpartition(".")[2] for name in known)
            raise RecipeError(f"student.lora.targets: there is no linear layer '{target}'. {nearest(target, ends)}")
        chosen += found
    shared = [name for name in _output(model) if name in chosen and _tied(model)]
    if shared:
        raise RecipeError(
            f"student.lora.targets: '{shared[0]}' is the embedding too, which an adapter that is merged into it would change. Leave it out."
        )
    return list(dict.fromkeys(chosen))


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers, also those of GPT-2, which keeps their weights the other way round."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            yield name, module


def _tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _named(model: nn.Module, name: str, option: str) -> str:
    known = dict(model.named_modules())
    if name not in known:
        raise RecipeError(
            f"student.lora.{option}: there is no module '{name}'. {nearest(name, [n for n in known if n])}"
        )
    return name


def _classifier(model: Any) -> str | None:
    """The layer that gives a classifier's logits, in models of transformers."""
    if family_of(model) != "of_transformers" or "Classification" not in type(model).__name__:
        return None
    return last_linear(model, model.config.num_labels)


def _output(model: Any) -> list[str]:
    """The head of a language model, which is large, and often the embedding itself."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [name for name, module in model.named_modules() if module is head]
