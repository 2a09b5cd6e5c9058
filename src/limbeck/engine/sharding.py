"""A student spread over processes (FSDP2): each keeps a part of every parameter, gradient and optimiser moment.

Gradients are summed over processes, never averaged: the engine has divided by the global count before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import nn

from limbeck.actors import Actor
from limbeck.engine import weights
from limbeck.engine.processes import World
from limbeck.errors import RecipeError


class Sharded:
    """An actor whose network is spread over processes until `gather`.

    Blocks (what stands in `nn.ModuleList`s) and the network around them are gathered for their own forward and backward
    pass only. A whole copy waits on the CPU, and is the actor's network again after `gather`.
    """

    def __init__(self, actor: Actor, world: World):
        self.actor = actor
        self.plain = copy.deepcopy(actor.model).to("cpu")
        self._device = next(actor.model.parameters()).device
        self._stopped_early = actor.may_stop_early
        actor.may_stop_early = False  # a forward pass that is broken off leaves its block gathered
        shard(actor.model, world)

    def gather(self) -> None:
        """Give the actor a whole network again, with the weights that the processes hold (every process must call it)."""
        state, learning = weights.take(self.actor.model), dict(self.actor.model.named_parameters())
        weights.give(self.plain, state)
        for name, p in self.plain.named_parameters():
            p.requires_grad_(learning[name].requires_grad)
        self.actor.model = self.plain.to(self._device).train(self.actor.model.training)
        self.actor.may_stop_early = self._stopped_early
        self.actor.listen_again()


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
