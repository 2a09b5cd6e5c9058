"""A run: its folder, its life from recipe to result, and the function `distill`."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import torch
from limbeck.recipe import Recipe, RecipeKeys

from limbeck import environment
from limbeck.actors import Actor, Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import checkpoint, random_state, validate
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.processes import World
from limbeck.engine.stepper import NonFiniteError
from limbeck.engine.trainer import Observer, Silent, Situation, Stopped
from limbeck.errors import RecipeError
from limbeck.evaluation import intervals, requirements, retention
from limbeck.evaluation.measure import Measured, measure
from limbeck.interrupts import Interrupts
from limbeck.locking import only_here
from limbeck.method import Method
from limbeck.methods.supervised import Supervised
from limbeck.shipping import student as shipped
from limbeck.sources import fingerprint
from limbeck.tasks import Task

Source = Recipe | str | Path


def distill(
    recipe: Source | Run | None = None,
    /,
    *settings: str,
    out: str | Path | None = None,
    observer: Observer | None = None,
    command: str | None = None,
    **keys: Unpack[RecipeKeys],
) -> Run:
    """Train the student that a recipe describes, measure it, and leave a run folder.

    Args:
        recipe: a file, a named recipe, a `Recipe`, a run (which is repeated), or nothing when `keys` say it all.
        settings: changes as on the command line, `"train.lr=1e-4"`.
        out: the run folder. With the same recipe it continues what is there, or returns at once when that is done.
        observer: told of every step; None: silence.
        keys: keys of the recipe.

    Raises:
        RecipeError: this cannot be run; nothing was started.
        Stopped: interrupted, or at a limit; everything is saved and `Run.resume` goes on.
    """
    if isinstance(recipe, Run):
        recipe = recipe.recipe
    if recipe is None:
        resolved = Recipe.of(dict(keys))
        if settings:
            resolved = resolved.with_settings(*settings)
    else:
        resolved = recipe if isinstance(recipe, Recipe) else _load(recipe)
        resolved = resolved.with_keys(dict(keys)).with_settings(*settings)
    folder = Path(out) if out is not None else _free_folder(resolved.name)
    world = World.here()
    folder = Path(world.agree(str(folder)))
    return _Life(resolved, folder, world, observer or Silent(), command or _command_of_this_process()).live()


class Run:
    """A run folder, finished or not.

    Raises:
        RecipeError: the folder does not exist, or is no run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise RecipeError(f"{folder}: there is no such folder.")
        if not (self.folder / "recipe.yaml").exists():
            raise RecipeError(
                f"{folder} is not a run folder: it holds no recipe.yaml. Run folders are made by limbeck distill."
            )

    def __repr__(self) -> str:
        return f"Run('{self.folder}')"

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.load(self.folder / "recipe.yaml")

    @property
    def result(self) -> dict[str, Any]:
        """What `result.json` says.

        Raises:
            RecipeError: the run did not finish.
        """
        path = self.folder / "result.json"
        if not path.exists():
            raise RecipeError(f"{self.folder} has no result yet. limbeck resume {self.folder}")
        return json.loads(path.read_text())

    @property
    def student(self) -> Student:
        """The student that ships, with its weights."""
        return Student(self.folder)

    def resume(self, *settings: str, observer: Observer | None = None) -> Run:
        """Go on from the last checkpoint; only the budget, limits and what is measured or written may be changed.

        Raises:
            RecipeError: a setting that would make it another run.
        """
        allowed = ("train.epochs", "train.steps", "limit", "track", "evaluate", "require", "export")
        for setting in settings:
            key = setting.split("=")[0]
            if not any(key == name or key.startswith(name + ".") for name in allowed):
                raise RecipeError(
                    f"resume cannot change '{key}': that would be another run. It may change {', '.join(allowed)}; else limbeck distill."
                )
        recipe = self.recipe.with_settings(*settings)
        if settings:
            (self.folder / "result.json").unlink(missing_ok=True)
        life = _Life(
            recipe, self.folder, World.here(), observer or Silent(), _command_of_this_process(), changed=bool(settings)
        )
        return life.live()

    def evaluate(
        self, checks: Sequence[str] | None = None, *, data: Any = None, split: str = "test", of: str = "student"
    ) -> dict[str, Any]:
        """Measure the student (or `of="teacher"`) on a split of the run's data, or of other data.

        Raises:
            RecipeError: an unknown check, split or column.
        """
        recipe = self.recipe
        found: Data = recipe.build_data() if data is None else recipe.with_keys({"data": data}).build_data()
        task = recipe.build_task(found)
        if of not in ("student", "teacher"):
            raise RecipeError(f"of='{of}': measure the 'student' or the 'teacher'.")
        actor: Actor | None = self.student if of == "student" else recipe.build_teacher()
        if actor is None:
            raise RecipeError(f"{self.folder} has no teacher to measure.")
        actor.look_at(found.columns)
        world = World()
        once = validate.batches(found[split], 256, world)
        actor.model.eval()
        chosen = list(checks) if checks is not None else [c["use"] for c in recipe.evaluate_choices()]
        return measure(actor, once, task, checks=chosen, world=world).entry

    def export(self, to: str, *, quantize: str = "none", push: str | None = None) -> Path:
        """Write the student in another format. `safetensors` is what `student/` holds; others are not there yet."""
        if to != "safetensors" or quantize != "none" or push is not None:
            raise RecipeError(
                f"export to '{to}'{' with quantize or push' if quantize != 'none' or push else ''} is not there yet. There is: safetensors."
            )
        target = self.folder / "export"
        target.mkdir(exist_ok=True)
        copied = target / "student.safetensors"
        shutil.copyfile(self.folder / "student" / "model.safetensors", copied)
        return copied


@dataclass
class _Life:
    """From a recipe and a folder to a finished run."""

    recipe: Recipe
    folder: Path
    world: World
    observer: Observer
    command: str
    changed: bool = False
    notices: list[str] = field(default_factory=list)

    def live(self) -> Run:
        if not self.world.main:
            return self._train()
        existing = self._check_folder()
        if existing is not None:
            return existing
        fresh = not self.folder.exists()
        try:
            with only_here(self.folder):
                return self._train()
        except RecipeError:
            if fresh and not [p for p in self.folder.iterdir() if p.name != ".lock"]:
                shutil.rmtree(self.folder)  # nothing was started, so nothing is left
            raise

    def say(self, sentence: str) -> None:
        self.notices.append(sentence)
        self.observer.say(sentence)

    def _check_folder(self) -> Run | None:
        """A finished run with the same recipe is returned; another recipe, or a foreign folder, is refused."""
        if not self.folder.exists() or not any(p for p in self.folder.iterdir() if p.name != ".lock"):
            return None
        stored = self.folder / "recipe.yaml"
        if not stored.exists():
            raise RecipeError(
                f"{self.folder} is not empty and not a run folder (no recipe.yaml). Choose another folder with --out."
            )
        if not self.changed:
            different = self.recipe.difference(Recipe.load(stored))
            if different:
                raise RecipeError(
                    f"{self.folder} holds a run of another recipe: {'; '.join(different[:8])}. Choose another folder with --out, or change the recipe back."
                )
        if (self.folder / "result.json").exists() and json.loads((self.folder / "result.json").read_text())[
            "status"
        ] == "finished":
            self.observer.say(f"{self.folder} is finished already; nothing was run.")
            return Run(self.folder)
        return None

    def _train(self) -> Run:
        started = time.monotonic()
        recipe, world = self.recipe, self.world
        data = recipe.build_data()
        random_state.seed_all(recipe.seed)
        student = recipe.build_student()
        task = recipe.build_task(data)
        teacher = recipe.build_teacher()
        for sentence in [*data.notices, *recipe.notices]:
            self.say(sentence)
        self._check_fit(data, task, student, teacher)
        plan = recipe.build_plan()
        untrained = copy.deepcopy(student.model)
        for actor in (student, teacher):
            if actor is not None:
                for model in _networks(actor):
                    model.to(world.device)
        if world.main:
            self._write_start(data, student, teacher)
        self._introduce(teacher, data, task)
        with Interrupts() as interrupts:
            self._limits(interrupts, started)
            results = self._course(self.folder, plan, student, teacher, task, data, interrupts, recipe.seed)
            if world.main:
                shipped.write(self.folder / "student", student, task, data, self._model_spec())
            control = self._control(untrained, student, task, data, interrupts)
        if world.size > 1:
            world.wait()
        self._finish(started, student, self._as_given(teacher, data), control, task, data, plan, results)
        return Run(self.folder)

    def _check_fit(self, data: Data, task: Task, student: Student, teacher: Teacher | None) -> None:
        """Everything that can be known to be wrong before anything is written."""
        for actor in (student, teacher):
            if actor is None:
                continue
            for member in actor.members.values() if isinstance(actor, Teacher) else [actor]:
                view = member.look_at(data.columns)
                view.check(list(data.columns), member.whose, data.source)
        if task.labels:
            student.labels = student.labels or task.labels
        for name in data.splits:
            if len(data.splits[name]) == 0:
                raise RecipeError(f"the split '{name}' of {data.source} is empty.")
        if "train" not in data.splits:
            raise RecipeError(f"{data.source} has no split 'train'; it has {', '.join(data.splits) or 'none'}.")
        shapes = student.probe(data.splits["train"].__getitems__([0, 0]))
        for split in data.splits.values():
            if isinstance(split, TensorSplit) and task.target in split.tensors and "logits" in shapes:
                task.check(shapes["logits"], split.tensors[task.target], "student")

    def _course(
        self,
        folder: Path,
        plan: Any,
        student: Student,
        teacher: Teacher | None,
        task: Task,
        data: Data,
        interrupts: Interrupts,
        seed: int,
    ) -> list[dict[str, Any]]:
        """Train in `folder`, from its newest checkpoint if there is one."""
        done = folder / "stages.json"
        keep = folder / "checkpoints"
        log = Log(folder / "log.jsonl" if self.world.main else None, self._trackers() if folder == self.folder else ())
        situation = Situation(
            student,
            teacher,
            task,
            data,
            self.recipe.train,
            seed,
            self.world,
            log,
            self.observer,
            stop=interrupts.asked,
            memory_limit=self._memory(),
        )
        course = Course(plan, situation, store=lambda position, state: checkpoint.save(keep, position, state))
        state, said = checkpoint.load_newest(keep)
        for sentence in said:
            self.say(sentence)
        if state is None:
            random_state.seed_all(seed + self.world.rank)
            log.rewind(0)
        try:
            results = course.run(state)
        except NonFiniteError as error:
            saved = f" The last state saved before: {checkpoint.list_all(keep)[-1]}. Steps that are not finite can be skipped: --on-nonfinite skip"
            raise NonFiniteError(error.what, error.step, error.ids, saved) from error
        finally:
            log.close()
        for sentence in dict.fromkeys(s for method in course.methods for s in method.notices):
            self.say(sentence)
        self.findings = self._findings(course.methods[-1], data) if folder == self.folder and course.methods else []
        listed = [
            {
                "name": r.name,
                "method": type(m).card.name if hasattr(type(m), "card") else type(m).__name__,
                "epochs": r.epochs,
                "steps": r.steps,
                "seconds": round(r.seconds, 3),
                "selected_epoch": r.selected_epoch,
                "validation_loss": r.loss,
                "validation_metric": r.metric,
            }
            for r, m in zip(results, course.methods)
        ]
        if self.world.main:
            _write_json(done, listed)
        return listed

    def _findings(self, method: Method, data: Data) -> list[dict[str, Any]]:
        split = data.splits.get("validation") or data.splits["train"]
        return method.findings(validate.batches(split, 256, World(device=self.world.device)))

    def _control(
        self, untrained: torch.nn.Module, student: Student, task: Task, data: Data, interrupts: Interrupts
    ) -> Student | None:
        """The same student without a teacher: trained now, found again, or as it came."""
        wanted = self.recipe.control
        if wanted == "none" or (wanted == "train" and self._is_supervised()):
            return None
        if wanted not in ("train", "start"):
            return Student(wanted, view=student.view)
        control = Student(untrained.to(self.world.device), view=student.view, taps=student.paths, labels=student.labels)
        if wanted == "start":
            return control
        folder = self.folder / "control"
        mark = self._control_mark(untrained, data, task)
        found = self.world.agree(self._paid_already(mark))
        if found is not None:
            if self.world.main and not (folder / "student" / "model.safetensors").exists():
                shutil.copytree(found, folder, dirs_exist_ok=True, copy_function=_link)
            self.world.wait()
            self.say(f"the control (same student, budget and seed, no teacher) was trained before: {found}")
            shipped.read_into(control, folder / "student")
            return control
        self.observer.say("now the control: the same student, budget and seed, without a teacher")
        folder.mkdir(exist_ok=True)
        findings = self.findings
        self._course(folder, Supervised(), control, None, task, data, interrupts, self.recipe.seed)
        self.findings = findings
        if self.world.main:
            shipped.write(folder / "student", control, task, data, self._model_spec())
            _write_json(folder / "control.json", {"fingerprint": mark})
        return control

    def _is_supervised(self) -> bool:
        plan = self.recipe.build_plan()
        return isinstance(plan, Supervised)

    def _control_mark(self, untrained: torch.nn.Module, data: Data, task: Task) -> str:
        import hashlib

        train = self.recipe.train.model_dump(mode="json")
        for free in ("save_every", "log_every", "workers", "micro_batch", "trainees"):
            train.pop(free)
        told = [
            fingerprint(untrained),
            data.fingerprint,
            train,
            repr(task),
            self.recipe.seed,
            self.recipe.student_view(),
            environment.version("limbeck"),
        ]
        return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]

    def _paid_already(self, mark: str) -> Path | None:
        """A finished control with this fingerprint, here or in a run folder beside this one."""
        for facts in [
            self.folder / "control" / "control.json",
            *sorted(self.folder.parent.glob("*/control/control.json")),
        ]:
            if facts.exists() and json.loads(facts.read_text()).get("fingerprint") == mark:
                return facts.parent
        return None

    def _introduce(self, teacher: Teacher | None, data: Data, task: Task) -> None:
        """Print where each teacher came from, its fingerprint and its metric on a probe batch: a wrong teacher shows here."""
        if teacher is None or not self.world.main:
            return
        split = data.splits.get("validation") or data.splits["train"]
        size = min(256, len(split))
        once = validate.batches(_First(split, size), size, World(device=self.world.device))
        for name, member in teacher.members.items():
            member.model.eval()
            seen = measure(member, once, task, time_it=False).entry
            label = "teacher" if name == "teacher" else f"teacher {name}"
            self.say(
                f"{label}: {member.source.describe()}; fingerprint {fingerprint(member.model)}; {task.metric} {seen['metric']:.3f} on {size} {'validation' if 'validation' in data.splits else 'train'} samples"
            )

    def _model_spec(self) -> dict[str, Any] | None:
        return self.recipe.student_spec()

    def _limits(self, interrupts: Interrupts, started: float) -> None:
        hours = self.recipe.limit.hours
        spent_file = self.folder / "spent.json"
        before = json.loads(spent_file.read_text())["seconds"] if spent_file.exists() else 0.0

        def over() -> Stopped | None:
            seconds = before + time.monotonic() - started
            if hours is not None and seconds > hours * 3600:
                if self.world.main:
                    _write_json(spent_file, {"seconds": seconds})
                return Stopped(
                    "limit",
                    f"limit.hours={hours:g} is reached after {seconds / 3600:.3g} h. Everything is saved: limbeck resume {self.folder} limit.hours=...",
                )
            return None

        interrupts.also = over
        interrupts.folder = self.folder

    def _memory(self) -> int | None:
        limit = self.recipe.limit.memory_gb
        if limit is None:
            return None
        if self.world.device.type == "cuda":
            return int(limit * 1e9) - torch.cuda.memory_allocated(self.world.device)
        import psutil

        return max(int(limit * 1e9) - psutil.Process().memory_info().rss, 1)

    def _trackers(self) -> tuple[Any, ...]:
        names = self.recipe.track
        if not names or not self.world.main:
            return ()
        from limbeck.engine.tracking import build

        return build(names, self.folder, json.loads(json.dumps(self.recipe.to_mapping(), default=str)))

    def _write_start(self, data: Data, student: Student, teacher: Teacher | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "recipe.yaml").exists() or self.changed:
            _write(self.folder / "recipe.yaml", self.recipe.to_yaml(command=self.command))
        facts = environment.facts() | {
            "data": data.source,
            "data_fingerprint": data.fingerprint,
            "student_fingerprint": fingerprint(student.model),
        }
        for name, member in (teacher.members if teacher else {}).items():
            facts[f"teacher_fingerprint.{name}"] = fingerprint(member.model)
        _write_json(self.folder / "environment.json", facts)

    def _as_given(self, teacher: Teacher | None, data: Data) -> Teacher | None:
        """The teacher as it was brought, where files can give it back: a method may have trained it on (co-training)."""
        if teacher is None or any(m.source.weights is None or m.source.spec is None for m in teacher.members.values()):
            return teacher
        again = self.recipe.build_teacher()
        assert again is not None
        for member in again.members.values():
            member.look_at(data.columns)
            member.model.to(self.world.device)
        return again

    def _finish(
        self,
        started: float,
        student: Student,
        teacher: Teacher | None,
        control: Student | None,
        task: Task,
        data: Data,
        plan: Any,
        stages: list[dict[str, Any]],
    ) -> None:
        """Measure everyone on the test split, hold the requirements, write result and report."""
        split = "test" if "test" in data.splits else "validation" if "validation" in data.splits else "train"
        once = validate.batches(data.splits[split], 256, self.world)
        checks = [choice["use"] for choice in self.recipe.evaluate_choices()]
        for actor in (student, teacher, control):
            for model in _networks(actor) if actor is not None else []:
                model.eval()
        theirs = measure(teacher, once, task, checks=checks, world=self.world) if teacher is not None else None
        ours = measure(student, once, task, checks=checks, world=self.world, against=theirs)
        without = (
            measure(control, once, task, checks=checks, world=self.world, against=theirs)
            if control is not None
            else None
        )
        if not self.world.main:
            return
        result = self._result(ours, theirs, without, task, split, stages, time.monotonic() - started, data)
        result["require"] = requirements.check(self.recipe.require, result)
        _save_predictions(self.folder / "predictions.safetensors", ours, theirs, without)
        _save_samples(self.folder / "samples.safetensors", data.splits[split], ours, theirs or without)
        if self.findings:
            _write_json(self.folder / "findings.json", self.findings)
        shipped.card(self.folder / "student", result)
        _write_json(self.folder / "result.json", result)
        from limbeck import report

        report.write([self.folder], self.folder / "report.html")

    def _result(
        self,
        ours: Measured,
        theirs: Measured | None,
        without: Measured | None,
        task: Task,
        split: str,
        stages: list[dict[str, Any]],
        seconds: float,
        data: Data,
    ) -> dict[str, Any]:
        up = task.higher_is_better
        own, top = ours.entry["metric"], theirs.entry["metric"] if theirs else None
        base = without.entry["metric"] if without else None
        difference = None
        if without is not None and task.metric in _PER_SAMPLE:
            a, b = (_PER_SAMPLE[task.metric](m.logits, m.target) for m in (ours, without))
            found = intervals.paired_bootstrap(a, b)
            difference = {"what": "student - control", "how": "paired bootstrap over test samples"} | {
                key: getattr(found, key) for key in ("mean", "low", "high", "level")
            }
        steps = sum(stage["steps"] for stage in stages)
        return {
            "limbeck": environment.version("limbeck"),
            "status": "finished",
            "name": self.folder.name,
            "command": self.command,
            "split": split,
            "samples": len(ours.target),
            "seed": self.recipe.seed,
            "task": {"name": task.name, "metric": task.metric, "higher_is_better": up, "labels": task.labels},
            "method": self.recipe.method_name(),
            "student": ours.entry,
            "teacher": theirs.entry if theirs else None,
            "control": without.entry if without else None,
            "retention": retention.retention(own, top, higher_is_better=up),
            "gap_closed": retention.gap_closed(own, top, base, higher_is_better=up),
            "difference": difference,
            "cost": {"seconds": round(seconds, 2), "steps": steps, "samples": steps * self.recipe.train.batch_size},
            "stages": stages,
            "notices": self.notices,
        }


# Metrics that are means over samples, so that two models can be compared sample by sample.
_PER_SAMPLE = {
    "accuracy": lambda logits, target: logits.argmax(1).eq(target).double(),
    "mse": lambda values, target: (values.double() - target.double().reshape(values.shape)).square().flatten(1).mean(1),
    "mae": lambda values, target: (values.double() - target.double().reshape(values.shape)).abs().flatten(1).mean(1),
}


class _First:
    """The first rows of a split."""

    def __init__(self, split: Any, count: int):
        self.split, self.count, self.ids = split, count, split.ids[:count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.split[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.split.__getitems__(indices)


def _networks(actor: Actor) -> list[torch.nn.Module]:
    return [m.model for m in actor.members.values()] if isinstance(actor, Teacher) else [actor.model]


def _load(source: str | Path) -> Recipe:
    path = Path(source)
    return Recipe.load(path / "recipe.yaml") if (path / "recipe.yaml").exists() else Recipe.load(source)


def _free_folder(name: str) -> Path:
    number = 1
    while (Path("runs") / f"{name}-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-{number}"


def _command_of_this_process() -> str:
    import shlex

    if Path(sys.argv[0]).name in ("limbeck", "__main__.py"):
        return shlex.join(["limbeck", *sys.argv[1:]])
    return f"limbeck.distill(...) in {Path(sys.argv[0]).name or 'Python'}"


def _write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text)
    os.replace(aside, path)


def _write_json(path: Path, value: Any) -> None:
    _write(path, json.dumps(_without_nan(value), indent=1, default=str) + "\n")


def _without_nan(value: Any) -> Any:
    """Figures that are not defined become null: nan is not JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _save_predictions(path: Path, ours: Measured, theirs: Measured | None, without: Measured | None) -> None:
    from safetensors.torch import save_file

    named = {"student": ours, "teacher": theirs, "control": without}
    tensors = {f"{name}.logits": m.logits.contiguous() for name, m in named.items() if m is not None}
    save_file(tensors | {"target": ours.target.contiguous(), "id": ours.id.contiguous()}, path)


def _save_samples(path: Path, split: Any, ours: Measured, other: Measured | None, most: int = 12) -> None:
    """Some samples on which student and teacher (or control) disagree, spread over the split."""
    from safetensors.torch import save_file

    if other is None or other.logits.shape != ours.logits.shape or ours.logits.dim() != 2:
        return
    apart = (ours.logits.argmax(1) != other.logits.argmax(1)).nonzero().flatten()
    if not len(apart):
        return
    chosen = apart[torch.linspace(0, len(apart) - 1, min(most, len(apart))).long()]
    wanted = set(ours.id[chosen].tolist())
    order = {number: position for position, number in enumerate(_row_numbers(split))}
    batch = split.__getitems__([order[number] for number in sorted(wanted)])
    shown = {
        k: v.contiguous()
        for k, v in batch.items()
        if isinstance(v, torch.Tensor) and (k == "id" or (v.is_floating_point() and v.dim() == 4))
    }
    save_file(shown, path)


def _row_numbers(split: Any) -> Iterator[int]:
    for low in range(0, len(split), 1024):
        yield from split.__getitems__(list(range(low, min(low + 1024, len(split)))))["id"].tolist()
