"""State of modules and optimisers as whole tensors, also where they are spread over processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine.processes import World


def whole(tensor: Tensor) -> Tensor:
    """A detached copy on the CPU; shards are gathered (every process must call it)."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
    return full.detach().cpu().clone()


def take(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a module that it saves, but for frozen ones that a file gives back."""
    kept = elsewhere(module)
    return {name: whole(tensor) for name, tensor in module.state_dict().items() if name not in kept}


def give(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `take` took."""
    kept = elsewhere(module)
    own = {name: tensor for name, tensor in module.state_dict().items() if name not in kept or name in state}
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())
        raise RuntimeError(
            f"a stored state does not fit {type(module).__name__}: {', '.join(odd[:5])}. Did the code change in between?"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(like(state[name], tensor))


def elsewhere(module: nn.Module) -> frozenset[str]:
    """The names of what does not change and lies in a file: weights under low-rank adapters (`limbeck.models.lora`)."""
    return getattr(getattr(module, "adapted", None), "elsewhere", frozenset())


def agree(module: nn.Module, world: World) -> None:
    """Every process gets the main one's parameters and buffers: what was drawn at random before is the same everywhere."""
    if world.size > 1:
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.copy_(world.same(tensor.detach().clone(memory_format=torch.contiguous_format)))


def like(full: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor on the device of another, and spread over processes as that one is."""
    if not hasattr(tensor, "device_mesh"):
        return full.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(tensor.device), tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]


def take_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Moments and counters, by the position of the parameter."""
    state = optimizer.state_dict()["state"]
    return {
        str(i): {k: whole(v) if isinstance(v, Tensor) else v for k, v in entry.items()} for i, entry in state.items()
    }


def give_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Mapping[str, Any]]) -> None:
    """Put back what `take_optimizer` took."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for position, entry in stored.items():
        p = parameters[int(position)]
        state[int(position)] = {
            k: like(v, p) if isinstance(v, Tensor) and v.shape == p.shape and v.dim() else v for k, v in entry.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
