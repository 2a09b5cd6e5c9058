"""Gradients of a trainee: joined over processes, measured, clipped; plain and sharded parameters alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.engine.processes import World

Gradients = list[Tensor | None]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; a plain tensor is its own."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def sharded(tensor: Tensor) -> bool:
    """Whether the tensor is spread over processes (FSDP2), so that its gradient is summed already."""
    return hasattr(tensor, "to_local")


def reduce_(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Sum plain gradients over processes, in one call per dtype. A gradient missing here counts as zero.

    One that is missing everywhere stays missing, so that an optimiser skips it as it would with one process.
    """
    if world.size == 1:
        return
    plain = [p for p in parameters if not sharded(p)]
    for dtype in dict.fromkeys(p.dtype for p in plain):
        group = [p for p in plain if p.dtype == dtype]
        wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
        flags = torch.tensor([float(p.grad is not None) for p in group], dtype=wide, device=world.device)
        grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).to(wide).flatten() for p in group]
        flat = world.sum_(torch.cat([flags, *grads]))
        offset = len(group)
        for p, present in zip(group, flat[: len(group)].tolist()):
            p.grad = flat[offset : offset + p.numel()].view_as(p).to(dtype) if present else None
            offset += p.numel()


def norm(parameters: Sequence[nn.Parameter], world: World) -> Tensor:
    """The 2-norm of all gradients as one vector, in fp32 or better, over plain and sharded parameters."""
    if not any(map(sharded, parameters)):
        plain = [p.grad for p in parameters if p.grad is not None]
        return vector_norm(plain) if plain else torch.zeros((), device=world.device)
    plain = [p.grad for p in parameters if p.grad is not None and not sharded(p)]
    spread = [local(p.grad) for p in parameters if p.grad is not None and sharded(p)]
    total = torch.zeros((), device=world.device)
    if plain:
        total = vector_norm(plain) ** 2
    squares = vector_norm(spread) ** 2 if spread else torch.zeros((), device=world.device)
    return (total + world.sum_(squares.to(world.device))).sqrt()


def vector_norm(tensors: list[Tensor]) -> Tensor:
    tensors = [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def scale_(parameters: Sequence[nn.Parameter], factor: float | Tensor) -> None:
    """Multiply every gradient, in place."""
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    if grads:
        torch._foreach_mul_(grads, factor)


class WideSum:
    """Gradients of half-precision parameters, summed over pieces in fp32."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.halves = [p for p in parameters if p.dtype in (torch.bfloat16, torch.float16) and not sharded(p)]
        self.sums: dict[nn.Parameter, Tensor] = {}

    def take(self) -> None:
        """After a piece's backward pass: move the gradients into the sums."""
        for p in self.halves:
            if p.grad is not None:
                self.sums[p] = self.sums[p] + p.grad if p in self.sums else p.grad.float()
                p.grad = None

    def give(self) -> None:
        """After the last piece: put the sums back as gradients."""
        for p, total in self.sums.items():
            p.grad = total.to(p.dtype)
