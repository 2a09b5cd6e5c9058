"""How much layers, heads, neurons and channels of a transformer matter: by their weights, or by what they do with given inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.models.blocks import Block, Heads, sizes


@dataclass
class Importance:
    """Scores of at least 0; what scores 0 does nothing (heads, neurons) or nothing to its input (layers).

    Attributes:
        layers: block influence, 1 - cos(input, output), mean over tokens; None where nothing was run.
        heads, neurons: one row per block.
        width: the channels of the stream.
    """

    layers: Float[Tensor, "layers"] | None
    heads: list[Float[Tensor, "heads"]]
    neurons: list[Float[Tensor, "neurons"]]
    width: Float[Tensor, "width"]


def matrix(module: Any) -> Float[Tensor, "outputs inputs"]:
    """The matrix of an affine map, rows for outputs."""
    weight: Tensor = module.weight.detach()
    weight = weight if isinstance(module, nn.Linear) else weight.T
    return weight if weight.dtype == torch.float64 else weight.float()


def by_weights(model: Any, found: list[Block], layout: Heads | None) -> Importance:
    """Without inputs: heads by |W_v| |W_o|, neurons by the product of the norms of what goes in and out, channels by all their weights.

    A bias counts with the rows that it belongs to, so a neuron of score 0 is constant zero or written nowhere.
    """
    heads, neurons = [], []
    for block in found:
        neurons.append(_neurons_by_weights(model, block))
        if layout is None:
            continue
        values = _rows(model, block.attention[-1])[layout.rows()[2]].flatten(1).norm(dim=1)
        written = matrix(model.get_submodule(block.out)).T.reshape(layout.number, -1).norm(dim=1)
        heads.append(values.repeat_interleave(layout.number // layout.groups) * written)
    hidden = sizes(model.get_submodule(found[0].out))[1]
    width = torch.zeros_like(matrix(model.get_submodule(found[0].out))[:, 0])
    for parameter in model.parameters():
        for dim in range(parameter.dim()):
            if parameter.shape[dim] == hidden:
                others = [d for d in range(parameter.dim()) if d != dim]
                squares = parameter.detach().to(width).square()
                width += squares.sum(others) if others else squares
    return Importance(None, heads, neurons, width)


def _rows(model: Any, path: str) -> Float[Tensor, "outputs more"]:
    module = model.get_submodule(path)
    rows = matrix(module)
    return rows if module.bias is None else torch.cat([rows, module.bias.detach().to(rows)[:, None]], 1)


def _neurons_by_weights(model: Any, block: Block) -> Float[Tensor, "neurons"]:
    if block.outof is None:
        return torch.zeros(0)
    score = matrix(model.get_submodule(block.outof)).norm(dim=0)
    for path in block.into:
        for part in _rows(model, path).norm(dim=1).view(-1, len(score)):
            score = score * part
    return score


def by_use(model: Any, found: list[Block], layout: Heads | None, batches: Iterable[Mapping[str, Tensor]]) -> Importance:
    """On inputs: the mean, over tokens that count, of what each part adds to the stream.

    Heads: |W_o^h a_h|^2. Neurons: a_j^2 |W_out[:, j]|^2. Channels: the square of the stream behind each block, every
    block's divided by their mean over channels. Layers: 1 - cos(input, output).

    Raises:
        RecipeError: no batches.
    """
    sums: dict[str, Tensor] = {}
    counted: list[Tensor | None] = [None]
    tokens = 0

    def add(name: str, values: Float[Tensor, "batch tokens *any"]) -> None:
        mask = counted[0]
        kept = values.double() if mask is None else values.double()[mask.bool()]
        total = kept.reshape(-1, *values.shape[2:]).sum(0)
        sums[name] = sums[name] + total if name in sums else total

    handles = []
    for i, block in enumerate(found):
        for path, listen in _listeners(model, block, i, layout, add):
            handles.append(model.get_submodule(path).register_forward_hook(listen, with_kwargs=True))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                inputs = {key: value.to(model.device) for key, value in batch.items()}
                counted[0] = inputs.get("attention_mask")
                first = next(iter(inputs.values()))
                tokens += int(counted[0].sum() if counted[0] is not None else first.shape[:2].numel())
                model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    if not tokens:
        raise RecipeError(
            "importance is to be measured on inputs, and none were given (or none with a token that counts)."
        )
    means = {name: total / tokens for name, total in sums.items()}
    streams = [means[f"stream{i}"] for i in range(len(found))]
    return Importance(
        torch.stack([means[f"layer{i}"] for i in range(len(found))]),
        [means[f"heads{i}"] for i in range(len(found))] if layout else [],
        [means.get(f"neurons{i}", torch.zeros(0)) for i in range(len(found))],
        torch.stack([s / s.mean().clamp(min=1e-30) for s in streams]).sum(0),
    )


def _listeners(
    model: Any, block: Block, i: int, layout: Heads | None, add: Callable[[str, Tensor], None]
) -> list[tuple[str, Callable[..., None]]]:
    def of_block(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        before = args[0] if args else next(iter(kwargs.values()))
        after = output[0] if isinstance(output, (tuple, list)) else output
        add(f"layer{i}", 1 - torch.cosine_similarity(before.double(), after.double(), dim=-1))
        add(f"stream{i}", after.double().square())

    def of_neurons(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        add(f"neurons{i}", args[0].double().square() * matrix(module).double().square().sum(0))

    def of_heads(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        assert layout is not None
        parts = matrix(module).double().unflatten(1, (layout.number, -1))
        gram = torch.einsum("chd,che->hde", parts, parts)
        a = args[0].double().unflatten(-1, (layout.number, -1))
        add(f"heads{i}", torch.einsum("...hd,hde,...he->...h", a, gram, a).clamp(min=0))

    listeners: list[tuple[str, Callable[..., None]]] = [(block.path, of_block)]
    if block.outof is not None:
        listeners.append((block.outof, of_neurons))
    return listeners + ([(block.out, of_heads)] if layout is not None else [])
