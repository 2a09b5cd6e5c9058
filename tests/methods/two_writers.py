"""Trainings with written texts, in this process alone or in each of two: `python two_writers.py FOLDER` is one of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[n] / name) for n, name in ((0, ""), (1, "strain"), (1, "language"))]

from small_models import llama  # noqa: E402
from writers import SIZE, Speaks, situation  # noqa: E402

from limbeck.engine import random_state, weights  # noqa: E402
from limbeck.engine.course import Course  # noqa: E402
from limbeck.engine.processes import World  # noqa: E402
from limbeck.methods.adaspec import Draft  # noqa: E402
from limbeck.methods.distillm import DistiLLM  # noqa: E402
from limbeck.methods.distillm2 import DistiLLM2  # noqa: E402
from limbeck.methods.minillm import MiniLLM  # noqa: E402
from limbeck.methods.on_policy import OnPolicy  # noqa: E402
from limbeck.methods.sampled_reverse_kl import SampledReverseKL  # noqa: E402
from limbeck.methods.seq_kd import SeqKD  # noqa: E402


class Spread(OnPolicy):
    """Says no if the student that writes is not spread over the processes, where there are several."""

    def by_student(self, batch: Any, *, answers: int = 1, **changes: Any) -> Any:
        spread = any(hasattr(p, "device_mesh") for p in self.student.model.parameters())
        assert spread == torch.distributed.is_initialized()
        return super().by_student(batch, answers=answers, **changes)


def chosen() -> Draft:
    """A token is chosen among those of the whole step, whichever process has them."""
    torch.manual_seed(3)
    return Draft(weights.take(Speaks()))


HOW: dict[str, Any] = {"max_new_tokens": 4}
METHODS = {
    "on-policy": lambda: OnPolicy(student_share=0.6, teacher_share=0.5, **HOW),
    "seq-kd": lambda: SeqKD(sampling_temperature=1.0, **HOW),
    "sampled": lambda: SampledReverseKL(answers=2, **HOW),
    "minillm": lambda: MiniLLM(inner_epochs=2, **HOW),
    "distillm": lambda: DistiLLM(start=0.7, increase=0.1, tolerance=0.0, capacity=12, **HOW),
    "distillm-2": lambda: DistiLLM2(curriculum=True, **HOW),
    "adaspec": chosen,
    "sharded": lambda: Spread(student_share=1.0, **HOW),
}


def trained(name: str, world: World) -> dict[str, Tensor]:
    """The student, and all that the method remembers, after two epochs of ragged steps."""
    random_state.seed_all(0)
    where = sharded(world) if name == "sharded" else situation(micro_batch=2, lr=0.1)
    where.world, method = world, METHODS[name]()
    Course(method, where).run()
    found = {f"student.{n}": t for n, t in weights.take(where.student.model).items()}
    return found | {f"method.{n}": t for n, t in method.state_dict().items()}


def sharded(world: World) -> Any:
    """A model of transformers whose layers are spread over the processes: they generate in step, whoever is done first."""
    shard = "fsdp" if world.size > 1 else "none"
    return situation(student=llama(1, size=SIZE), teacher=llama(2, size=SIZE), micro_batch=2, lr=0.1, shard=shard)


def main(folder: Path) -> None:
    world = World.here("cpu")
    assert world.size == 2
    for name in METHODS:
        torch.save(trained(name, world), folder / f"{name}-{world.rank}.pt")
    world.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
