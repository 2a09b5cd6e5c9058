"""What a cycle of DMD2 costs beside a loop written by hand: five steps of the critic, one of the student, a GAN head.

    python benchmarks/dmd2_step.py [--out benchmarks/results/dmd2-step.json] [--cycles 6] [--device cuda]

All sides have the same networks (a U-Net for pictures of 3 x 32 x 32, about a million parameters, as student, teacher and
critic; a head on the critic's middle), the same data, draws, clipped and fused AdamW steps, and read their losses as they
go. Two loops are by hand: `own pass` makes the critic's samples in a pass of their own in every step, also where the
student learns; `shared pass` takes there those that the student's update has made. Limbeck's is the engine's trainer.

Steps of the sides alternate within one process; a figure is the median over cycles of the ratio of processor time (on a
GPU: of time between events). Before that the losses of all sides are compared over a cycle and a step more. Memory is the peak of
tensors alive from the making of the networks on, through a cycle, one side after another: every operation is watched
(on a GPU: the allocator's count).
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.log import Log
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Trainer
from limbeck.engine.validate import to_device
from limbeck.evaluation.memory import Watch
from limbeck.method import Stage
from limbeck.methods.dmd2 import DMD2
from limbeck.models.toy import PictureDenoiser

BATCH, ROWS, CRITIC_STEPS, GAN, CRITIC_GAN, LR, CLIP = 32, 256, 5, 3e-3, 1e-2, 1e-4, 1.0
SHAPE, CLASSES = (3, 32, 32), 10


def network(width: int, seed: int) -> PictureDenoiser:
    """A velocity of the linear flow, told the class."""
    torch.manual_seed(seed)
    return PictureDenoiser(3, 32, width, noise="flow", head="velocity", classes=CLASSES)


def pictures() -> TensorSplit:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, *SHAPE, generator=g).clamp(-1, 1)
    return TensorSplit({"x": x, "label": torch.randint(0, CLASSES, (ROWS,), generator=g)})


def rows_of(step: int) -> Tensor:
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(step))[:BATCH]


class Head(nn.Module):
    """One number per sample out of a map of features."""

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        self.hidden, self.norm, self.output = nn.Linear(channels, width), nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, feature: Tensor) -> Tensor:
        h = self.norm(self.hidden(feature.flatten(2).transpose(1, 2)))
        return self.output(F.silu(h)).flatten(1).mean(1)


class ByHand:
    """The loop one would write, on the modules of the network alone."""

    shared = False

    def __init__(self, width: int, split: TensorSplit, device: torch.device):
        self.split, self.device = split, device
        self.teacher = network(width, 1).to(device).eval().requires_grad_(False)
        self.student = network(width, 2).to(device)
        self.critic = copy.deepcopy(self.teacher).train()
        torch.manual_seed(3)
        self.head = Head(2 * width).to(device)
        self.theirs = [*self.critic.parameters(), *self.head.parameters()]
        self._learning(self.theirs, False)
        options: dict[str, Any] = {"lr": LR, "weight_decay": 0.01, "fused": True}
        self.of_student = torch.optim.AdamW(self.student.parameters(), **options)
        self.of_critic = torch.optim.AdamW(self.theirs, **options)

    def step(self, number: int) -> list[float]:
        batch = {k: v.to(self.device) for k, v in self.split.__getitems__(rows_of(number)).items()}
        real, label = batch["x"], batch["label"]
        torch.manual_seed(number)
        z, one = self._noise(), torch.ones(BATCH, device=self.device)
        losses, fake = [], None
        turn = number % CRITIC_STEPS == 0
        if not (self.shared and turn):
            with torch.no_grad():
                fake = self._denoised(self.student, z, one, label)
        if turn:
            loss, made = self._student_loss(z, one, label)
            losses.append(self._descend(loss, self.of_student, list(self.student.parameters())))
            fake = made if fake is None else fake
        assert fake is not None
        self._learning(self.student.parameters(), False)
        self._learning(self.theirs, True)
        losses.append(self._descend(self._critic_loss(fake, real, label), self.of_critic, self.theirs))
        self._learning(self.theirs, False)
        self._learning(self.student.parameters(), True)
        return losses

    def _student_loss(self, z: Tensor, one: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        t, eps = 0.02 + 0.96 * self._uniform(), self._noise()
        t_gan, eps_gan = self._uniform().clamp(1e-3, 1), self._noise()
        x0 = self._denoised(self.student, z, one, label)
        with torch.no_grad():
            x_t = noised(x0, t, eps)
            told, found = self._denoised(self.teacher, x_t, t, label), self._denoised(self.critic, x_t, t, label)
            g = (found - told) / (x0 - told).abs().mean((1, 2, 3), keepdim=True)
        loss = F.mse_loss(x0, x0.detach() - g) / 2
        return loss + GAN * F.softplus(-self._judged(x0, t_gan, eps_gan, label)).mean(), x0.detach()

    def _critic_loss(self, fake: Tensor, real: Tensor, label: Tensor) -> Tensor:
        t, eps = self._uniform().clamp(1e-3, 1), self._noise()
        times, noises = [self._uniform().clamp(1e-3, 1) for _ in range(2)], [self._noise() for _ in range(2)]
        loss = F.mse_loss(self.critic.predict(noised(fake, t, eps), t, condition=label), eps - fake)
        loss = loss + CRITIC_GAN * F.softplus(self._judged(fake, times[0], noises[0], label)).mean()
        return loss + CRITIC_GAN * F.softplus(-self._judged(real, times[1], noises[1], label)).mean()

    def _judged(self, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor) -> Tensor:
        net = self.critic
        e = net.embedded(t, {"condition": label})
        h = net.smaller(net.down(net.inputs(noised(x0, t, eps)), e))
        for block in net.inner:
            h = block(h, e)
        return self.head(h)

    def _denoised(self, net: PictureDenoiser, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return x - t[:, None, None, None] * net.predict(x, t, condition=label)

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item()

    def _noise(self) -> Tensor:
        return torch.randn(BATCH, *SHAPE, device=self.device)

    def _uniform(self) -> Tensor:
        return torch.rand(BATCH, device=self.device)

    @staticmethod
    def _learning(parameters: Any, on: bool) -> None:
        for p in parameters:
            p.requires_grad_(on)


class Shared(ByHand):
    """The same, without the second pass of the student in the steps in which it learns."""

    shared = True


def noised(x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    t = t[:, None, None, None]
    return (1 - t) * x + t * eps


class ByLimbeck:
    """A run's trainer: loader's rows, both updates through the stepper, its checks and its log of every tenth step."""

    def __init__(self, width: int, split: TensorSplit, device: torch.device, log_every: int = 10):
        names = [str(i) for i in range(CLASSES)]
        data = Data({"train": split}, {"x": "", "label": ""}, {"label": names}, fingerprint="-", source="random")
        train: dict[str, Any] = {"lr": LR, "schedule": "constant", "clip": CLIP, "precision": "fp32"}
        settings = TrainSettings(
            steps=10**6, epochs=None, batch_size=BATCH, save_every=1e9, log_every=log_every, **train
        )
        actors = Student(network(width, 2).to(device)), Teacher(network(width, 1).to(device))
        for actor in actors:
            actor.look_at(["x", "label", "id"])
        self.lines = Lines()
        where = Situation(*actors, None, data, settings, world=World(device=device), log=self.lines)
        method = DMD2(critic_steps=CRITIC_STEPS, gan_weight=GAN, critic_gan_weight=CRITIC_GAN)
        settle(method, where)
        torch.manual_seed(3)
        method.judge.load_state_dict(Head(2 * width).state_dict())
        self.trainer, self.split, self.device = (
            Trainer(Stage("distil", method.to(device)), where, settings),
            split,
            device,
        )

    def step(self, number: int) -> list[float]:
        batch = to_device(self.split.__getitems__(rows_of(number)), self.device)
        torch.manual_seed(number)
        self.lines.found.clear()
        self.trainer._step(batch, 0, 0.0, time.monotonic())
        self.trainer._pause()
        return [line["loss"] for line in self.lines.found]


class Lines(Log):
    """The log of a run, kept."""

    def __init__(self) -> None:
        super().__init__(None)
        self.found: list[dict[str, Any]] = []

    def write(self, line: dict[str, Any]) -> None:
        self.found.append(line)


Side = Callable[[int, TensorSplit, torch.device], Any]
SIDES: dict[str, Side] = {"own pass": ByHand, "shared pass": Shared, "limbeck": ByLimbeck}


def agreement(width: int, device: torch.device) -> float:
    """The largest relative difference of any update's loss between any two sides, over a cycle and a step.

    Raises:
        AssertionError: it is above 1e-5.
    """
    split, apart = pictures(), 0.0
    sides: list[Any] = [make(width, split, device) for make in (ByHand, Shared)]
    sides.append(ByLimbeck(width, split, device, log_every=1))
    for number in range(CRITIC_STEPS + 1):
        first, *others = (side.step(number) for side in sides)
        for other in others:
            apart = max(apart, *(abs(a - b) / abs(a) for a, b in zip(first, other, strict=True)))
    assert apart <= 1e-5, f"the losses of the sides differ by {apart:.2g}"
    return apart


def timed(width: int, cycles: int, device: torch.device) -> dict[str, Any]:
    """Seconds per cycle of each side, and their ratios; the first cycle warms up."""
    split = pictures()
    made = {name: make(width, split, device) for name, make in SIDES.items()}
    spent: dict[str, list[float]] = {name: [] for name in made}
    for cycle in range(cycles + 1):
        sums = dict.fromkeys(made, 0.0)
        for number in range(cycle * CRITIC_STEPS, (cycle + 1) * CRITIC_STEPS):
            first = number % len(made)
            for name in [*made][first:] + [*made][:first]:
                sums[name] += seconds(lambda name=name, number=number: made[name].step(number), device)  # type: ignore[misc]
        if cycle:
            for name, value in sums.items():
                spent[name].append(value)
    found: dict[str, Any] = {"ms_per_cycle_quartiles": {name: told(values, 1e3) for name, values in spent.items()}}
    for name in (n for n in made if n != "limbeck"):
        ratios = [ours / theirs for ours, theirs in zip(spent["limbeck"], spent[name])]
        found[f"ratio_to_{name.replace(' ', '_')}"] = round(statistics.median(ratios), 4)
        found[f"ratio_to_{name.replace(' ', '_')}_quartiles"] = told(ratios)
    return found


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    clock = time.process_time()
    run()
    return time.process_time() - clock


def told(values: list[float], scale: float = 1.0) -> list[float]:
    return [round(q * scale, 4) for q in statistics.quantiles(values, n=4)]


def peak(make: Side, width: int, device: torch.device) -> int:
    """The most bytes of tensors alive at once, from the making of the networks to the end of a cycle and one step."""
    split = pictures()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side = make(width, split, device)
        for number in range(CRITIC_STEPS + 1):
            side.step(number)
        return torch.cuda.max_memory_allocated() - before
    with Watch() as watch:
        side = make(width, split, device)
        for number in range(CRITIC_STEPS + 1):
            side.step(number)
    return watch.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dmd2-step.json"))
    parser.add_argument("--cycles", type=int, default=6)
    parser.add_argument("--width", type=int, default=64, help="channels of the U-Net's outer level")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    apart = agreement(given.width, device)
    memory = {name: round(peak(make, given.width, device) / 1e6, 2) for name, make in SIDES.items()}
    found = {
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": BATCH,
        "parameters": sum(p.numel() for p in network(given.width, 0).parameters()),
        "cycles": given.cycles,
        "largest_relative_difference_of_losses": apart,
        **timed(given.width, given.cycles, device),
        "peak_mb": memory,
        "peak_ratio": {
            name: round(memory["limbeck"] / value, 4) for name, value in memory.items() if name != "limbeck"
        },
    }
    print(json.dumps(found, indent=1))
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(kept | {given.device: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
