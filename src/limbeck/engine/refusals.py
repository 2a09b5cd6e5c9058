"""What would fail in the middle of an epoch, found before the first step."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.data.tensors import Split
from limbeck.engine import random_state, validate
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError
from limbeck.method import Method, Transfer, adds_up


def refuse_a_batch_of_one(method: Method, settings: TrainSettings, split: Split, pieces: int, world: World) -> None:
    """BatchNorm in train mode cannot normalise a single value; random generators and buffers are left as they were.

    Raises:
        RecipeError: the student (or a bridge of the method) has such a layer, and some piece of some batch is a single
            sample.
    """
    size, left, samples = settings.batch_size, len(split) % settings.batch_size, len(split)
    parts = pieces * world.size
    smallest = min((n // parts or 1 for n in (min(size, samples), left) if n), default=2)
    model = method.student.model
    ours, bridges = (any(isinstance(m, _BatchNorm) and m.training for m in of.modules()) for of in (model, method))
    if smallest > 1 or not (ours or bridges):
        return
    buffers = [(b, b.clone()) for of in (model, method) for b in of.buffers()]
    before = random_state.capture(world.device)
    one = validate.to_device(split.__getitems__([0]), world.device)
    try:
        with torch.no_grad():
            if bridges and isinstance(method, Transfer) and adds_up(type(method)):
                method.loss(method.draw(one))
            else:
                method.student(one)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        why = (
            f"train.batch_size={size} leaves {left} of {samples} samples for the last step"
            if left and size > 1
            else f"train.batch_size={size}, {parts} pieces"
        )
        raise RecipeError(
            f"a batch of one sample reaches BatchNorm, which cannot normalise a single value ({why}). Choose another train.batch_size or "
            "train.micro_batch, so that no piece is a single sample."
        ) from error
    finally:
        random_state.restore(before, world.device)
        for buffer, old in buffers:
            buffer.copy_(old)
