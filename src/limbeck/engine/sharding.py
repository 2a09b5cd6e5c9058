"""Networks spread over processes (FSDP2): each keeps a part of every parameter, gradient and optimiser moment.

Gradients are summed over processes, never averaged: the engine has divided by the global count before.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.actors import Actor
from limbeck.engine import weights
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.signals import Head, Projection


class Sharded:
    """An actor whose network is spread over processes until `gather`: a whole copy waits on the CPU, and is its network again then."""

    def __init__(self, actor: Actor, world: World):
        self.actor = actor
        self.plain = copy.deepcopy(actor.model).to("cpu")
        self._device = next(actor.model.parameters()).device
        self._stopped_early = actor.may_stop_early
        self._head = actor.source.head
        spread(actor, world)

    def gather(self) -> None:
        """Give the actor a whole network again, with the weights that the processes hold (every process must call it)."""
        state, learning = weights.take(self.actor.model), dict(self.actor.model.named_parameters())
        weights.give(self.plain, state)
        for name, p in self.plain.named_parameters():
            p.requires_grad_(learning[name].requires_grad)
        whole = self.plain.to(self._device).train(self.actor.model.training)
        self.actor.model = self.actor.source.model = whole  # the source's too: later surgeries are made on that one
        self.actor.may_stop_early = self._stopped_early
        self.actor.source.head = self._head
        self.actor.listen_again()


def spread(actor: Actor, world: World) -> None:
    """Spread an actor's network over all processes, for good.

    Blocks (what stands in `nn.ModuleList`s) and the network around them are gathered for their own forward and backward
    pass only.
    """
    actor.may_stop_early = False  # a forward pass that is broken off leaves its block gathered
    if actor.source.head is not None:
        actor.source.head = GatheredHead(**vars(actor.source.head))
    shard(actor.model, world)
    _wake(actor)


def _wake(actor: Actor) -> None:
    """Let a gradient that arrives at a tap gather the root's parameters, as one at the network's output does.

    The last norm of a language model is of the root, and its head reads the tap behind it: the network's own output
    has no part in the loss, and without this the backward pass would meet parameters that are spread.
    """
    model: Any = actor.model
    root = model._get_fsdp_state()
    if not hasattr(root, "_register_pre_backward_hook"):
        raise RecipeError("train.shard=fsdp does not know how this torch gathers parameters. pip install torch==2.13.0")
    wakes = _Wakes(root)
    for place in actor.places.values():
        if place.module:
            module = model.get_submodule(place.module)
            if place.input:
                module.register_forward_pre_hook(wakes.before)
            else:
                module.register_forward_hook(wakes.after)


class _Wakes:
    """Hooks that announce to FSDP that a backward pass may begin at a value."""

    def __init__(self, root: Any):
        self.root = root

    def before(self, module: nn.Module, args: Any) -> None:
        self.root._register_pre_backward_hook(args)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.root._register_pre_backward_hook(output)


class GatheredHead(Head):
    """The head of a sharded language model: gathered outside the forward pass, where the fused losses read it.

    Its gradient, which each process has for its own tokens, is summed and spread again in the backward pass.
    """

    def of(self, model: Any, hidden: Float[Tensor, "... width"]) -> Projection:
        """The logits as factors that every process holds whole (every process must call it)."""
        found = super().of(model, hidden)
        bias = None if found.bias is None else _gathered(found.bias)
        return dataclasses.replace(found, weight=_gathered(found.weight), bias=bias)


def _gathered(tensor: Tensor) -> Tensor:
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import Partial

    return tensor.full_tensor(grad_placements=[Partial()])  # type: ignore[operator, no-any-return]


def shard(module: nn.Module, world: World) -> None:
    """Spread a network over all processes, block by block, in place.

    Raises:
        RecipeError: this torch has no FSDP2 that sums.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        ways = (FSDPModule.set_gradient_divide_factor, FSDPModule.set_force_sum_reduction_for_comms)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"train.shard=fsdp needs a newer torch ({error}). pip install -U torch") from error
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*blocks(module), module):
        # Also the root is spread again after each forward pass: gathered parameters do not see that who learns changes.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        ways[0](part, 1.0)  # type: ignore[arg-type]
        ways[1](part, True)  # type: ignore[arg-type]


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a network: what stands in its outermost `nn.ModuleList`s."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            for block in child.children():
                yield from blocks(block) if isinstance(block, (nn.ModuleList, nn.ModuleDict)) else [block]
        else:
            yield from blocks(child)
