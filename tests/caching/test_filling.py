"""What is asked and how it is said; and that who asks, and when, changes no byte."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch import nn

import limbeck
from limbeck import RecipeError, Student, Teacher
from limbeck.caching import form
from limbeck.caching.asking import drawn
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.trainer import Silent
from limbeck.layers import LayerTransfer
from limbeck.losses.features import mse
from limbeck.method import Card, Method
from limbeck.methods.kd import KD
from limbeck.objectives import Objective, Term
from limbeck.teachers.mixture import Mixture
from limbeck.transforms import ModalityDropout, Noise, RandomMask, Subset, Transform
from limbeck.views import View


class Net(nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.body, self.last, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        return self.head(self.last(self.body(x).relu()).relu())


class Hints(LayerTransfer):
    """The stages of one network against those of another."""

    card = Card("hints")
    proposes = "stages"
    weight: float = 2.0

    def objective(self) -> Objective:
        return Objective(*(Term(mse, pair, name=f"hint{i}") for i, pair in enumerate(self.pairs)))


class Alone(Method):
    card = Card("alone", needs=("logits",))

    def loss(self, batch: Any):
        return self.task.loss(self.student(batch), batch)


class Together(KD):
    """KD with a teacher that learns too, and does not say so on its card."""

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, self.teacher.model]}


def data(seed: int = 0) -> Data:
    g = torch.Generator().manual_seed(seed)

    def part(n: int, first: int) -> TensorSplit:
        return TensorSplit(
            {"x": torch.randn(n, 4, generator=g), "label": torch.randint(0, 3, (n,), generator=g)}, first
        )

    splits = {"train": part(21, 0), "validation": part(6, 21), "test": part(7, 27)}
    return Data(splits, {"x": "", "label": ""}, source="toy")


def made(seed: int = 0, width: int = 6) -> Net:
    torch.manual_seed(seed)
    return Net(width)


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def ask(out: Path, heard: Heard | None = None, **keys: Any) -> Any:
    base = {"data": data(), "teacher": Teacher(made(), view="x"), "train": {"batch_size": 4}}
    return limbeck.cache(out=out, observer=heard or Heard(), **(base | keys))


def kept(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


def test_by_default_what_the_method_reads_of_all_splits_in_fp16(tmp_path):
    heard = Heard()
    stored = ask(tmp_path / "c", heard, student=Student(made(1), view="x"), method=KD())
    assert stored.header["signals"] == {"logits": {"shape": [3], "given": "float32", "dtype": "fp16"}}
    assert [part["split"] for part in stored.header["passes"]] == ["train", "validation", "test"]
    assert "stored: logits (fp16 [3]), which kd reads; of train, validation, test: 34 answers, 0.0 MB" in heard.said


def test_a_sum_of_methods_is_heard_in_all_that_it_reads(tmp_path):
    heard = Heard()
    student = Student(made(1), view="x")
    stored = ask(
        tmp_path / "c", heard, student=student, method=KD() + Hints(layers=[["body", "body"], ["last", "last"]])
    )
    assert stored.holds == ["body", "last", "logits"]
    assert stored.paths == {"body": "body", "last": "last"}


def test_layers_that_were_proposed_are_found_again_in_the_cache(tmp_path):
    keys = {"student": Student(made(1), view="x"), "method": Hints(), "control": "none"}
    heard = Heard()
    stored = ask(tmp_path / "c", heard, cache={"dtype": "fp32"}, **keys)
    assert len(stored.holds) == 2
    assert any("the teacher's own figures will not be known" in sentence for sentence in heard.said)
    train = {"epochs": 2, "batch_size": 4, "lr": 0.01}
    runs = [
        limbeck.distill(
            data=data(),
            teacher=teacher,
            student=Student(made(1), view="x"),
            method=Hints(),
            control="none",
            train=train,
            out=tmp_path / name,
        )
        for name, teacher in (("online", Teacher(made(), view="x")), ("cached", tmp_path / "c"))
    ]
    one, other = map(weights, runs)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)
    assert runs[1].result["teacher"] is None  # no logits are held
    assert runs[0].result["teacher"] is not None


@pytest.mark.parametrize("method", ["fitnets", "ofa", "rkd", "kd+at"])
def test_what_a_method_takes_from_the_teachers_network_is_kept(tmp_path, method):
    """FitNets takes the middle pair of many, OFA the width of the teacher's embedding: neither is in the answers."""
    torch.manual_seed(0)
    teacher = Teacher(Deep(9), view="image")
    images = {"image": torch.randn(12, 1, 8, 8), "label": torch.randint(0, 3, (12,))}
    found = Data({"train": TensorSplit(images)}, {"image": "", "label": ""}, source="images")

    def student() -> Student:
        torch.manual_seed(1)
        return Student(Deep(4), view="image")

    train = {"epochs": 2, "batch_size": 4}
    keys = {"data": found, "method": method, "train": train, "control": "none"}
    stored = ask(tmp_path / "c", teacher=teacher, student=student(), **keys | {"cache": {"dtype": "fp32"}})
    assert stored.embedding_width == 18
    runs = [
        limbeck.distill(teacher=t, student=student(), out=tmp_path / name, **keys)
        for name, t in (("online", teacher), ("cached", stored))
    ]
    one, other = map(weights, runs)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)


class Deep(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, width, 3, padding=1),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        )
        self.head = nn.Linear(2 * width, 3)

    def forward(self, image):
        return self.head(self.c(self.b(self.a(image).relu()).relu()).relu().mean((2, 3)))


def weights(run: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.folder / "student" / "model.safetensors")


def test_without_a_student_the_logits_or_what_is_named(tmp_path):
    heard = Heard()
    assert ask(tmp_path / "a", heard).holds == ["logits"]
    assert "since there is no student and no cache.signals" in heard.said[0]
    named = ask(tmp_path / "b", cache={"signals": ["logits", "embedding", "body"]})
    assert named.holds == ["body", "embedding", "logits"]
    assert named.paths == {"embedding": "head:input", "body": "body"}


def test_only_the_splits_that_are_named(tmp_path):
    stored = ask(tmp_path / "c", cache={"splits": ["train"]})
    assert stored.answers("train")
    assert not stored.answers("test")
    assert len(stored.header["shards"]) == 1
    with pytest.raises(RecipeError, match="no split 'tset'"):
        ask(tmp_path / "d", cache={"splits": ["tset"]})


def test_a_run_with_a_cache_measures_its_teacher_where_it_was_stored(tmp_path):
    keys = {"student": Student(made(1), view="x"), "method": KD(), "control": "none", "data": data()}
    train = {"epochs": 1, "batch_size": 4}
    teacher = Teacher(made(), view="x")
    online = limbeck.distill(teacher=teacher, out=tmp_path / "online", train=train, **keys).result["teacher"]
    results = {}
    for name, splits in (("all", None), ("some", ["train"])):
        ask(tmp_path / name, student=Student(made(1), view="x"), method=KD(), cache={"splits": splits, "dtype": "fp32"})
        own = keys | {"student": Student(made(1), view="x")}
        results[name] = limbeck.distill(
            teacher=tmp_path / name, out=tmp_path / f"run-{name}", train=train, **own
        ).result
    there = results["all"]["teacher"]
    assert there["latency_ms"] is None
    assert there | {"latency_ms": 0} == online | {"latency_ms": 0, "figures": there["figures"]}
    assert there["figures"] == pytest.approx(online["figures"], abs=1e-6)
    assert results["some"]["teacher"] is None
    assert results["some"]["retention"] is None
    said = " ".join(results["some"]["notices"])
    assert "is not known, since it stores no logits of the validation split" in said


def test_a_run_of_its_own_folder_goes_on_and_asks_nothing_twice(tmp_path):
    teacher = Teacher(made(), view="x")
    ask(tmp_path / "c", teacher=teacher)
    first, before = teacher.model.asked, kept(tmp_path / "c")
    heard = Heard()
    ask(tmp_path / "c", heard, teacher=teacher)
    assert teacher.model.asked - first < 34  # a few samples to see the shapes
    assert heard.said[-1].endswith("is finished already, and every checksum holds; nothing was asked.")
    assert kept(tmp_path / "c") == before


class Faint(Net):
    """Stops after some samples, as if it had been killed."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def forward(self, x):
        answer = super().forward(x)
        if self.asked > self.most:
            raise InterruptedError
        return answer


def faint(most: int) -> Teacher:
    torch.manual_seed(0)
    return Teacher(Faint(most), view="x")


@pytest.mark.parametrize("most", [8, 16, 27, 33, 37])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch, most):
    monkeypatch.setattr(form, "SHARD_ROWS", 8)
    at_once = faint(10**9)
    ask(tmp_path / "whole", teacher=at_once)
    with pytest.raises(InterruptedError):
        ask(tmp_path / "c", teacher=faint(most))
    assert not form.read(tmp_path / "c")["complete"]
    again = faint(10**9)
    ask(tmp_path / "c", teacher=again)
    shapes = at_once.model.asked - 34  # the samples that show the shapes
    written = max(rows for rows in (0, 8, 16, 21, 27, 34) if rows <= most - shapes)  # whole shards
    assert again.model.asked == at_once.model.asked - written
    assert kept(tmp_path / "c") == kept(tmp_path / "whole")


def test_another_question_in_the_same_folder_is_refused_and_says_where(tmp_path):
    ask(tmp_path / "c")
    for change, told in (
        ({"teacher": Teacher(made(1), view="x")}, r"another question: teacher\.fingerprint\.teacher"),
        ({"data": data(1)}, r"another question: data\.fingerprint"),
        ({"teacher": Teacher(made(), view=View("x", transforms=[Noise(std=0.1)]))}, r"another question: teacher\.view"),
        ({"cache": {"dtype": "fp32"}}, r"another question: signals\.logits\.dtype: fp32 here, fp16 there"),
        ({"train": {"batch_size": 8}}, r"another question: batch: 8 here, 4 there"),
    ):
        with pytest.raises(RecipeError, match=told):
            ask(tmp_path / "c", **change)


def test_what_cannot_be_asked_is_said(tmp_path):
    with pytest.raises(RecipeError, match="there is nobody to ask"):
        ask(tmp_path / "c", teacher=None)
    ask(tmp_path / "c")
    with pytest.raises(RecipeError, match="the teacher is a cache itself"):
        ask(tmp_path / "d", teacher=tmp_path / "c")
    student = Student(made(1), view="x")
    with pytest.raises(RecipeError, match="reads nothing of a teacher"):
        ask(tmp_path / "d", student=student, method="supervised")
    with pytest.raises(RecipeError, match="mst-distill works inside the teacher"):
        ask(tmp_path / "d", student=student, method="mst-distill", teacher=Mixture({"a": Teacher(made(), view="x")}))
    with pytest.raises(RecipeError, match="Together works inside the teacher"):
        ask(tmp_path / "d", student=student, method=Together())
    run = {"student": student, "data": data(), "teacher": tmp_path / "c", "train": {"epochs": 1, "batch_size": 4}}
    with pytest.raises(RecipeError, match="Together trains the teacher, and a store of its answers cannot learn"):
        limbeck.distill(method=Together(), out=tmp_path / "run", **run)
    assert not (tmp_path / "run").exists()
    assert ask(tmp_path / "e", student=student, method=Alone()).holds == ["logits"]  # what its card says it needs
    with pytest.raises(RecipeError, match=r"tap 'bdy': .*Did you mean 'body'"):
        ask(tmp_path / "d", cache={"signals": "bdy"})
    assert not (tmp_path / "d").exists()


class Huge(Net):
    def forward(self, x):
        return super().forward(x) * 1e9


def test_stages_are_heard_in_all_that_they_read(tmp_path):
    stages = [
        {"name": "warm", "method": "supervised", "train": {"epochs": 1}},
        {"name": "hints", "method": {"use": "fitnets", "layers": [["last", "last"]]}, "train": {"epochs": 1}},
        {"name": "answers", "method": "kd", "train": {"epochs": 1}},
    ]
    assert ask(tmp_path / "c", student=Student(made(1), view="x"), stages=stages).holds == ["last", "logits"]


def test_training_rows_are_asked_in_the_precision_of_the_training(tmp_path):
    teacher = Teacher(made(), view="x")
    keys = {"cache": {"dtype": "fp32"}, "train": {"batch_size": 4, "precision": "bf16"}}
    stored = ask(tmp_path / "c", teacher=teacher, **keys)
    train, test = (data()[split].__getitems__([0, 1, 2, 3]) for split in ("train", "test"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = teacher(train)["logits"]
    assert half.dtype == torch.bfloat16
    assert torch.equal(stored(train)["logits"], half.float())
    torch.testing.assert_close(stored(test)["logits"], teacher(test)["logits"], rtol=0, atol=1e-6)


def test_a_limit_of_the_disk_is_kept(tmp_path):
    with pytest.raises(RecipeError, match=r"the answers need .* GB, and limit\.disk_gb is 1e-09"):
        ask(tmp_path / "c", limit={"disk_gb": 1e-9})
    assert not (tmp_path / "c").exists()


class Pixels(nn.Module):
    def __init__(self, classes: int = 5):
        super().__init__()
        self.conv = nn.Conv2d(1, classes, 3, padding=1)

    def forward(self, image):
        return self.conv(image)


def test_maps_of_logits_are_stored_and_taught(tmp_path):
    torch.manual_seed(0)
    columns = {"image": torch.randn(10, 1, 4, 4), "mask": torch.randint(-1, 5, (10, 4, 4))}
    found = Data({"train": TensorSplit(columns)}, {"image": "", "mask": ""}, source="maps")
    teacher = Teacher(Pixels(), view="image")
    task = {"use": "segmentation", "target": "mask"}
    train = {"epochs": 2, "batch_size": 4}
    keys = {"data": found, "task": task, "method": KD(), "train": train, "control": "none"}
    stored = ask(
        tmp_path / "c", teacher=teacher, student=Student(Pixels(), view="image"), **keys | {"cache": {"top_k": 2}}
    )
    assert stored.header["signals"]["logits"]["dim"] == 1
    batch = found["train"].__getitems__([7, 2])
    p, q = teacher(batch)["logits"].softmax(1), stored(batch)["logits"].exp()
    torch.testing.assert_close(q.sum(1), torch.ones(2, 4, 4))
    torch.testing.assert_close(q.topk(2, dim=1).values, p.topk(2, dim=1).values, rtol=0, atol=2e-3)
    run = limbeck.distill(teacher=stored, student=Student(Pixels(), view="image"), out=tmp_path / "run", **keys)
    assert run.result["teacher"]["metric"] is not None


def test_numbers_that_do_not_fit_are_refused_and_the_remedy_works(tmp_path):
    torch.manual_seed(0)
    teacher = Teacher(Huge(), view="x")
    with pytest.raises(RecipeError, match=r"rows 0 to 20 of train holds nan, or numbers too large for fp16.*bf16"):
        ask(tmp_path / "c", teacher=teacher)
    stored = ask(tmp_path / "d", teacher=teacher, cache={"dtype": "bf16"})
    batch = data()["train"].__getitems__([0, 1])
    torch.testing.assert_close(stored(batch)["logits"], teacher(batch)["logits"], rtol=1e-2, atol=0)


def test_data_that_are_read_ahead_give_the_same_bytes(tmp_path):
    ask(tmp_path / "a")
    ask(tmp_path / "b", train={"batch_size": 4, "workers": 1})
    assert kept(tmp_path / "a") == kept(tmp_path / "b")


class Own(Transform):
    """A user's transform that draws without saying so."""

    def __call__(self, inputs, seeds):
        return inputs if seeds is None else {key: x + seeds[:, None] % 2 for key, x in inputs.items()}

    def spec(self):
        return {"use": "own"}


class Scale(Transform):
    """A user's transform that does not draw."""

    def __call__(self, inputs, seeds):
        return {key: 2 * x for key, x in inputs.items()}


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ([], False),
        ([Subset(keep="x")], False),
        ([Scale()], False),
        ([Own()], True),
        ([Noise(std=0.0)], True),
        ([Scale(), RandomMask(fraction=0.5, keys="x", dims=(-1,))], True),
        ([ModalityDropout(rate=0.1)], True),
    ],
)
def test_whether_a_view_draws(transforms, expected):
    found = drawn(Teacher(made(), view=View("x", transforms=transforms)), data(), torch.device("cpu"))
    assert found is expected


def test_the_terminal_hears_of_every_batch(tmp_path):
    class Count(Heard):
        steps: Annotated[list[int], "done"]

        def __init__(self) -> None:
            super().__init__()
            self.steps = []

        def stage(self, name: str, steps: int, done: int) -> None:
            self.total = steps

        def step(self, progress, loss, samples_per_s) -> None:
            self.steps.append(progress.step + 1)

    counted = Count()
    ask(tmp_path / "c", counted)
    assert counted.total == 6 + 2 + 2
    assert counted.steps == [6, 8, 10]
