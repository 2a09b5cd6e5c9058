"""What the process tests run, in this process alone or in each of two: `python two_processes.py FOLDER` is one of them.

A scenario gives tensors; the tests compare those of one process with those of two.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchjd.aggregation import PCGrad

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import checkpoint, gradients, random_state
from limbeck.engine.course import Course
from limbeck.engine.divide import Divider
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Stopped
from limbeck.losses import cross_entropy, kl, linear, mse
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss
from limbeck.tasks import Task

LONG = 6


def ragged(count: int) -> dict[str, Tensor]:
    """Rows of which the last are short, so that a mean of means is plainly wrong."""
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(count, LONG, generator=g) < torch.linspace(0.95, 0.1, count).unsqueeze(1)
    mask[0, 0] = True
    columns = {"x": torch.randn(count, LONG, 3, generator=g).double(), "y": torch.randn(count, LONG, generator=g)}
    return columns | {"mask": mask, "id": torch.arange(count)}


def contrast(z: Tensor, y: Tensor) -> Tensor:
    return -(z @ y.T).log_softmax(-1).diagonal()


def squared(net: nn.Module, b: dict[str, Tensor]) -> Tensor:
    return (net(b["x"]).squeeze(-1) - b["y"]) ** 2


def pooled(net: nn.Module, b: dict[str, Tensor]) -> Loss:
    return Loss.batch("c", contrast, z=net(b["x"]).squeeze(-1), y=b["y"].double())


KINDS: dict[str, Any] = {
    "no mask": lambda m, b: Loss.mean("a", squared(m, b)) + 0.2 * Loss.mean("b", squared(m, b).mean(1).sqrt()),
    "a column": lambda m, b: Loss.mean("a", squared(m, b), b["mask"]) + Loss.mean("b", squared(m, b).mean(1).sqrt()),
    "one made mask": lambda m, b: Loss.mean("a", squared(m, b), b["mask"] & (b["y"] > -1)),
    "two made masks": lambda m, b: (
        Loss.mean("a", squared(m, b), b["mask"] & (b["y"] > -1)) + 2.0 * Loss.mean("b", squared(m, b), b["y"] > 0.3)
    ),
    "picked by a condition": lambda m, b: (
        Loss.mean("a", squared(m, b)[b["mask"]]) + Loss.mean("b", squared(m, b).mean(1))
    ),
    "whole batch": lambda m, b: pooled(m, b) * 0.3 + Loss.mean("a", squared(m, b), b["mask"]),
}


def division(world: World, folder: Path) -> dict[str, Tensor]:
    """Gradients of every kind of loss in 1, 4 and 8 pieces, of 13, 3 and 1 rows: the last leaves a rank without any."""
    found = {}
    for kind, make in KINDS.items():
        for count in (13, 3, 1):
            for pieces in (1, 4, 8):
                torch.manual_seed(1)
                net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
                chosen = torch.arange(count)[world.rank :: world.size]
                extra = {} if len(chosen) else {"ghost": True}
                chosen = chosen if len(chosen) else torch.arange(1)
                batch = {k: v[chosen] for k, v in ragged(count).items()} | extra

                def loss(b: dict[str, Tensor], make: Any = make, net: nn.Module = net) -> Loss:
                    made = make(net, b)
                    made.record["id"] = b["id"]
                    return made

                taken = Divider(world, nullcontext)(loss, batch, list(net.parameters()), pieces=pieces)
                gradients.reduce_(list(net.parameters()), world)
                name = f"{kind}/{count} rows/{pieces} pieces"
                found[name] = torch.cat([p.grad.flatten() for p in net.parameters()])
                found[f"{name}/values"] = torch.stack([v.double() for v in taken.values.values()])
                found[f"{name}/ids"] = taken.record["id"].sort().values
    return found


def data() -> Data:
    def rows(count: int, first: int) -> TensorSplit:
        g = torch.Generator().manual_seed(first)
        label = torch.randint(0, 3, (count,), generator=g)
        keep = torch.rand(count, 3, generator=g) < 0.5
        return TensorSplit(
            {"x": torch.randn(count, 6, generator=g) + 2 * torch.eye(6)[label], "label": label, "keep": keep}, first
        )

    return Data({"train": rows(22, 0), "validation": rows(11, 100)}, fingerprint="two")


class Net(nn.Module):
    """A small network with dropout, for restarts; without, for comparing one process with two."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 5), nn.Dropout(dropout), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x).tanh()))


class Everything(Method):
    """A critic in alternation, a ragged mask, a loss of the whole batch, a record, a buffer updated by hand."""

    card = Card("everything", teacher_mode="frozen")
    combine: bool = False

    def setup(self) -> None:
        self.critic = nn.Linear(3, 1)
        self.register_buffer("said", torch.zeros(22, 3))

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model], "critic": [self.critic]}

    def learn(self, batch: Any, progress: Any) -> Any:
        yield Update("critic", self.judge, batch)
        outcome = yield Update("student", self.loss, batch, combine=PCGrad() if self.combine else None)
        self.said[outcome.record["id"]] = outcome.record["said"]

    def judge(self, batch: Any) -> Loss:
        ours, theirs = self.critic(self.student(batch)["logits"]), self.critic(self.teacher(batch)["logits"])
        return Loss.mean("judge", nn.functional.softplus(ours).squeeze(1) + nn.functional.softplus(-theirs).squeeze(1))

    def loss(self, batch: Any) -> Loss:
        ours, theirs = self.student(batch)["logits"], self.teacher(batch)["logits"]
        loss = Loss.mean("task", cross_entropy(ours, batch["label"])) + Loss.mean(
            "ragged", (ours - theirs) ** 2, batch["keep"]
        )
        loss = loss + 0.5 * Loss.batch("contrast", contrast, z=ours, y=theirs)
        loss = loss + 0.1 * Loss.mean("fool", -self.critic(ours).squeeze(1), ours.detach().argmax(-1) == batch["label"])
        loss.record |= {"id": batch["id"], "said": ours.softmax(-1)}
        return loss


def everything(world: World, *, dropout: float = 0.0, combine: bool = False, **train: Any) -> Course:
    torch.manual_seed(3)
    student, teacher = Student(Net(dropout), view="x"), Teacher(Net(), view="x")
    # 22 rows in steps of 7: the last step has one row, so the second process has none.
    settings = TrainSettings(**({"epochs": 2, "batch_size": 7, "lr": 0.02, "log_gradients": True} | train))
    where = Situation(student, teacher, Task("classification"), data(), settings, seed=4, world=world)
    method = Everything(combine=combine)
    random_state.seed_all(10 + world.rank)
    return Course(method, where)


def state_of(course: Course) -> dict[str, Tensor]:
    found = {f"student.{n}": t.clone() for n, t in course.situation.student.model.state_dict().items()}
    found |= {f"method.{n}": t.clone() for n, t in course.methods[-1].state_dict().items()}
    return found | {"selected": torch.tensor(course.results[-1].loss or 0.0)}


def training(world: World, folder: Path) -> dict[str, Tensor]:
    """Whole trainings, in one piece and in several; PCGrad with other random numbers on each process."""
    found = {}
    for name, options in {
        "whole": {},
        "cut": {"micro_batch": 2},
        "surgery": {"combine": True},
        "average": {"ema": 0.9, "micro_batch": 1, "optimizer": "sgd"},
    }.items():
        course = everything(world, **options)
        course.run()
        found |= {f"{name}/{n}": t for n, t in state_of(course).items()}
    return found


def restart(world: World, folder: Path) -> dict[str, Tensor]:
    """Stopped because the last process was asked to, continued from the folder; and never stopped."""
    whole = everything(world, dropout=0.4, micro_batch=2)
    whole.run()
    asked = 0

    def stop() -> Stopped | None:
        nonlocal asked
        asked += 1
        return Stopped("interrupted", "asked") if asked == 5 and world.rank == world.size - 1 else None

    keep = folder / f"restart-{world.size}"
    first = everything(world, dropout=0.4, micro_batch=2)
    first.store, first.situation.stop = lambda position, state: checkpoint.save(keep, position, state), stop
    try:
        first.run()
        raise AssertionError("it was asked to stop")
    except Stopped:
        world.wait()
    state, _ = checkpoint.load_newest(keep)
    again = everything(world, dropout=0.4, micro_batch=2)
    random_state.seed_all(99)
    again.run(state)
    pairs = state_of(whole), state_of(again)
    return {f"{n}/same": torch.equal(pairs[0][n], pairs[1][n]) * torch.ones(1) for n in pairs[0]}


class Block(nn.Module):
    """Attention and a hidden layer, each added to what came in. (A key's bias has no gradient but noise, so there is none.)"""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(self.norm1(x)).chunk(3, -1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Numbers as tokens; two blocks; odd sizes, so that shards are uneven."""

    def __init__(self, width: int = 7):
        super().__init__()
        self.embed, self.place = nn.Linear(1, width), nn.Parameter(torch.zeros(6, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unsqueeze(-1)) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Sharded(Method):
    """A plain bridge beside the sharded student in one optimiser, a critic that goes first, a hint from the middle."""

    card = Card("sharded")

    def prepare(self) -> None:
        self.student.tap("hint", "blocks.0")

    def setup(self) -> None:
        self.bridge, self.critic = nn.Linear(7, 3), nn.Linear(3, 1)

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, self.bridge], "critic": [self.critic]}

    def learn(self, batch: Any, progress: Any) -> Any:
        yield Update("critic", self.judge, batch)
        yield Update("student", self.loss, batch | {"sure": self.student(batch)["logits"].softmax(-1).amax(-1)})

    def judge(self, batch: Any) -> Loss:
        return Loss.mean("judge", nn.functional.softplus(self.critic(self.student(batch)["logits"])).squeeze(1))

    def loss(self, batch: Any) -> Loss:
        signals, theirs = self.student(batch), self.teacher(batch)["logits"]
        loss = self.task.loss(signals, batch) + Loss.mean("kl", kl(signals["logits"], theirs), batch["sure"] > 0.4)
        loss = loss + 0.1 * Loss.mean("hint", mse(self.bridge(signals["hint"].mean(1)), theirs))
        loss = loss + Loss.mean("fool", -self.critic(signals["logits"]).squeeze(1))
        return loss + 0.3 * Loss.batch("contrast", contrast, z=signals["logits"], y=theirs)


def sharded(world: World, folder: Path) -> dict[str, Tensor]:
    """The same transformer trained sharded (with several processes) or plain, in one piece and in three; restarted."""
    found = {}

    def course(**train: Any) -> Course:
        torch.manual_seed(5)
        student, teacher = Student(Transformer(), view="x"), Teacher(Net(), view="x")
        shard = "fsdp" if world.size > 1 else "none"
        settings = TrainSettings(
            **({"epochs": 2, "batch_size": 7, "lr": 0.02, "clip": 0.5, "shard": shard, "log_gradients": True} | train)
        )
        where = Situation(student, teacher, Task("classification"), data(), settings, seed=4, world=world)
        random_state.seed_all(10)
        return Course(Sharded(), where)

    keep = folder / f"sharded-{world.size}"
    for name, train in {"whole": {"ema": 0.8}, "cut": {"micro_batch": 1}, "sgd": {"optimizer": "sgd"}}.items():
        made = course(**train)
        made.run()
        found |= {f"{name}/{n}": t for n, t in state_of(made).items()}

    cut_off, saves = course(ema=0.8, save_every=0.0), 0

    def store(position: int, state: dict[str, Any]) -> None:
        nonlocal saves
        saves += 1
        if saves == 5:
            checkpoint.save(keep, position, state)

    cut_off.store = store
    cut_off.run()
    world.wait()
    state, _ = checkpoint.load_newest(keep)
    assert state is not None
    again = course(ema=0.8)
    again.run(state)
    found |= {f"again/{n}": t for n, t in state_of(again).items()}
    return found


class Texts(Method):
    """KL and labels in one pass over the head, by the fused losses; counts that differ from rank to rank."""

    card = Card("texts", teacher_mode="frozen")

    def loss(self, batch: Any) -> Loss:
        ours, theirs = self.student(batch)["logits"], self.teacher(batch)["logits"]
        values = linear.kl(ours, theirs, mask=batch["answer"], temperature=2.0)
        loss = Loss.mean("kl", values, batch["answer"]) + 0.3 * self.task.loss({"logits": ours}, batch)
        return loss + 0.1 * Loss.mean("hint", ours.hidden.square().mean(-1), batch["answer"])


def language(world: World, folder: Path) -> dict[str, Tensor]:
    """A decoder of transformers, its head apart or tied to the embedding, sharded or plain, in one piece and in three."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
    from small_models import SIZE, llama

    def rows(count: int, first: int) -> TensorSplit:
        g = torch.Generator().manual_seed(first)
        ids = torch.randint(2, SIZE, (count, 7), generator=g)
        mask = torch.arange(7) < torch.randint(2, 8, (count, 1), generator=g)
        target = torch.cat([ids[:, 1:], torch.zeros(count, 1, dtype=torch.int64)], 1)
        target = target.masked_fill(~torch.cat([mask[:, 1:], torch.zeros(count, 1, dtype=torch.bool)], 1), -100)
        columns = {"input_ids": ids, "attention_mask": mask.long(), "target": target, "answer": target >= 0}
        return TensorSplit(columns | {"answer_bytes": torch.full((count,), 9)}, first)

    texts = Data({"train": rows(11, 0), "validation": rows(5, 100)}, fingerprint="texts")
    found = {}
    variants: dict[str, dict[str, Any]] = {
        "apart": {},
        "tied": {"tie": True},
        "cut": {"micro_batch": 1},
        "twice": {"gradient_checkpointing": True},
        "adapters": {"lora": {"rank": 2}},
    }
    for name, train in variants.items():
        made = llama(1, size=SIZE, tie_word_embeddings=train.pop("tie", False))
        torch.manual_seed(2)
        student, teacher = Student(made, lora=train.pop("lora", None)), Teacher(llama(2))
        assert student.source.head is not None
        shard = "fsdp" if world.size > 1 else "none"
        settings = TrainSettings(**({"epochs": 1, "batch_size": 4, "lr": 0.02, "clip": 0.5, "shard": shard} | train))
        where = Situation(student, teacher, Task("text", target="target"), texts, settings, seed=4, world=world)
        random_state.seed_all(10)
        course = Course(Texts(), where)
        course.run()
        found |= {f"{name}/{n}": t for n, t in state_of(course).items()}
    return found


def generation(world: World, folder: Path) -> dict[str, Tensor]:
    """Student, teacher, critic, head and slow copies: see `two_generators`."""
    from two_generators import generation as run

    return run(world, folder)


SCENARIOS = {
    "language": language,
    "division": division,
    "training": training,
    "restart": restart,
    "sharded": sharded,
    "generation": generation,
}


def main(folder: Path) -> None:
    world = World.here("cpu" if torch.cuda.is_available() else None)
    assert world.size == 2
    for name, scenario in SCENARIOS.items():
        found = scenario(world, folder)
        torch.save(found, folder / f"{name}-{world.rank}.pt")
    world.wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
