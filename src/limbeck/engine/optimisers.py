"""Optimisers by name, and the learning rate as a function of progress."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from limbeck.engine.gradients import sharded
from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError, nearest
from limbeck.method import Progress


def _known() -> dict[str, type[torch.optim.Optimizer]]:
    found = {
        n.lower(): c
        for n, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    return {name: cls for name, cls in found.items() if name not in ("optimizer", "lbfgs", "sparseadam")}


def build(
    parameters: Sequence[nn.Parameter], settings: TrainSettings, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """The optimiser that `settings` names, with its learning rate, weight decay and own options.

    Where torch has a fused step for it and these parameters, that one is taken (one kernel instead of a dozen per tensor), unless
    the options say otherwise or gradients are `scaled`.

    Raises:
        RecipeError: an unknown optimiser or option.
    """
    options = dict(settings.optimizer)
    name = str(options.pop("use", "adamw")).lower().replace("-", "").replace("_", "")
    known = _known()
    if name not in known:
        raise RecipeError(f"unknown optimizer '{settings.optimizer.get('use')}'. {nearest(name, known)}")
    takes = inspect.signature(known[name]).parameters
    for key in options:
        if key not in takes or key in ("params", "lr", "weight_decay"):
            raise RecipeError(
                f"unknown key 'train.optimizer.{key}' of {name}. {nearest(key, [t for t in takes if t != 'params'])}"
            )
    for key, value in options.items():
        if isinstance(value, (list, tuple)):  # betas of a file: [0, 0.99], and torch wants floats
            options[key] = tuple(float(v) if isinstance(v, int) else v for v in value)
    extra: dict[str, Any] = {"weight_decay": settings.weight_decay} if "weight_decay" in takes else {}
    said = {"fused", "foreach", "differentiable", "capturable"} & options.keys()
    if "fused" in takes and not said and not scaled and all(_fusible(p) for p in parameters):
        extra["fused"] = True
    return known[name](parameters, lr=settings.lr, **extra, **options)  # type: ignore[call-arg]


def _fusible(p: nn.Parameter) -> bool:
    return p.is_floating_point() and p.device.type in ("cpu", "cuda") and not sharded(p)


def learning_rate(settings: TrainSettings, progress: Progress) -> float:
    """lr * warm-up * schedule at the step about to be made."""
    warmup = settings.warmup * progress.steps if settings.warmup < 1 else settings.warmup
    rising = min(1.0, (progress.step + 1) / warmup) if warmup >= 1 else 1.0
    return settings.lr * rising * settings.schedule(progress)
