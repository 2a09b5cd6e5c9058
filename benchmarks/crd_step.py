"""What a step of CRD costs against one as usually written: draws by the alias method, copies of the drawn rows, `bmm`.

    python benchmarks/crd_step.py [--out benchmarks/results/crd-step.json] [--rows 50000]

The reference is written from the formulas with the operations of common code: both memories' drawn rows are copied out
(`index_select`) and multiplied (`bmm`), the probabilities are formed and their logarithms taken with a small number
against zero, the memories are updated after the scores. Networks are kept small, so that the step is mostly CRD's.
Both sides step in turn within one process; the figure is the median over blocks of the ratio of the two medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Trainer
from limbeck.engine.validate import to_device
from limbeck.method import Stage
from limbeck.methods.crd import CRD
from limbeck.tasks import Task

CLASSES, BATCH, NEGATIVES, WIDTH, HEAT, MOMENTUM = 100, 64, 16384, 128, 0.07, 0.5


class Net(nn.Module):
    """A hidden layer and a classifier."""

    def __init__(self, hidden: int):
        super().__init__()
        self.body, self.head = nn.Linear(48, hidden), nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


class Alias:
    """Draws from a discrete distribution in constant time per draw (Walker 1977), by two tables."""

    def __init__(self, shares: Tensor):
        count = len(shares)
        self.keep, self.other = torch.ones(count), torch.arange(count)
        left = (shares * count / shares.sum()).tolist()
        small, large = [i for i, v in enumerate(left) if v < 1], [i for i, v in enumerate(left) if v >= 1]
        while small and large:
            low, high = small.pop(), large.pop()
            self.keep[low], self.other[low] = left[low], high
            left[high] -= 1 - left[low]
            (small if left[high] < 1 else large).append(high)

    def draw(self, count: int) -> Tensor:
        at = torch.randint(0, len(self.keep), (count,))
        return torch.where(torch.bernoulli(self.keep[at]).bool(), at, self.other[at])


class Usual:
    """The loop with memories as most code has them."""

    def __init__(self, student: Net, teacher: Net, split: TensorSplit):
        self.student, self.teacher, self.split = student.train(), teacher.eval(), split
        self.maps = nn.ModuleList(nn.Linear(net.head.in_features, WIDTH) for net in (student, teacher))
        bound = 1 / (WIDTH / 3) ** 0.5
        self.banks = [torch.rand(len(split), WIDTH) * 2 * bound - bound for _ in range(2)]
        self.normalisers = [-1.0, -1.0]
        self.alias = Alias(torch.ones(len(split)))
        parameters = [*student.parameters(), *self.maps.parameters()]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)

    def step(self, rows: Tensor) -> float:
        batch = self.split.__getitems__(rows)
        with torch.no_grad():
            theirs = self.teacher.body(batch["x"]).relu()
        hidden = self.student.body(batch["x"]).relu()
        loss = F.cross_entropy(self.student.head(hidden), batch["label"])
        g = [F.normalize(m(x), dim=1) for m, x in zip(self.maps, (hidden, theirs))]
        picks = self.alias.draw(BATCH * (NEGATIVES + 1)).view(BATCH, -1)
        picks[:, 0] = batch["id"]
        for i in range(2):
            drawn = self.banks[1 - i].index_select(0, picks.view(-1)).view(BATCH, NEGATIVES + 1, WIDTH)
            o = torch.exp(torch.bmm(drawn, g[i].unsqueeze(2)).squeeze(2) / HEAT)
            if self.normalisers[i] < 0:
                self.normalisers[i] = float(o.detach().mean()) * len(self.split)
            o = o / self.normalisers[i]
            noise = NEGATIVES / len(self.split)
            right = torch.log(o[:, 0] / (o[:, 0] + noise + 1e-7)).sum()
            wrong = torch.log(noise / (o[:, 1:] + noise + 1e-7)).sum()
            loss = loss - 0.8 * (right + wrong) / BATCH
        with torch.no_grad():
            for bank, now in zip(self.banks, g):
                mean = MOMENTUM * bank.index_select(0, batch["id"]) + (1 - MOMENTUM) * now
                bank.index_copy_(0, batch["id"], F.normalize(mean, dim=1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.item()


class Ours:
    """The engine's step with `crd`, with its loader, logging of every 10th step, and checks."""

    def __init__(self, student: Net, teacher: Net, split: TensorSplit):
        names = [str(i) for i in range(CLASSES)]
        data = Data({"train": split}, {"x": "", "label": ""}, {"label": names}, fingerprint="-", source="random")
        settings = TrainSettings(
            steps=10**6, epochs=None, batch_size=BATCH, lr=1e-3, schedule="constant", precision="fp32", save_every=1e9
        )
        world = World(device=torch.device("cpu"))
        actors = Student(student, view="x"), Teacher(teacher, view="x")
        situation = Situation(*actors, Task("classification", labels=names), data, settings, world=world)
        method = CRD(negatives=NEGATIVES, width=WIDTH, temperature=HEAT, momentum=MOMENTUM)
        settle(method, situation)
        self.trainer = Trainer(Stage("distil", method), situation, settings)
        self.split, self.world = split, world

    def step(self, rows: Tensor) -> float:
        batch = to_device(self.split.__getitems__(rows), self.world.device)
        self.trainer._step(batch, 0, 0.0, time.monotonic())
        return self.trainer.last_loss


def timed(rows: int, blocks: int, size: int) -> dict[str, Any]:
    """Steps in turn; the ratio of medians per block. The first losses agree but for the draws."""
    torch.manual_seed(0)
    split = TensorSplit({"x": torch.randn(rows, 48), "label": torch.arange(rows) % CLASSES})
    nets = Net(64), Net(128)
    sides: dict[str, Any] = {
        name: side(*copy.deepcopy(nets), split) for name, side in (("usual", Usual), ("limbeck", Ours))
    }
    first = {name: side.step(torch.arange(BATCH)) for name, side in sides.items()}
    ratios: list[float] = []
    medians: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(blocks):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(size):
            picked = torch.randperm(rows, generator=torch.Generator().manual_seed(block * size + i))[:BATCH]
            for name in list(sides) if i % 2 else list(sides)[::-1]:
                clock = time.perf_counter()
                sides[name].step(picked)
                times[name].append(1e3 * (time.perf_counter() - clock))
        for name, found in times.items():
            medians[name].append(statistics.median(found))
        ratios.append(medians["limbeck"][-1] / medians["usual"][-1])
    return {
        "rows": rows,
        "batch": BATCH,
        "negatives": NEGATIVES,
        "width": WIDTH,
        "ms": {name: statistics.median(found) for name, found in medians.items()},
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
        "first_loss": first,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/crd-step.json"))
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    found = [timed(rows, given.blocks, given.steps) for rows in given.rows]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    for case in found:
        print(
            f"{case['rows']:,} rows: {case['ms']['limbeck']:.0f} ms against {case['ms']['usual']:.0f}, ratio {case['ratio']:.3f}"
        )


if __name__ == "__main__":
    main()
