"""From a recipe and a folder to a finished run: check, train, compare with a control, measure, write."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck import control, environment, introduction, results, spending
from limbeck.actors import Actor, Student, Teacher
from limbeck.caching.wanted import refuse_work_inside
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import checkpoint, random_state, validate
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.processes import World
from limbeck.engine.stepper import NonFiniteError
from limbeck.engine.trainer import Observer, Situation, Stopped
from limbeck.errors import RecipeError
from limbeck.evaluation import requirements, samples
from limbeck.evaluation.checks import chosen
from limbeck.evaluation.judged import refuse_unfit
from limbeck.evaluation.measure import measure
from limbeck.evaluation.writing import side_by_side
from limbeck.interrupts import Interrupts
from limbeck.locking import only_here
from limbeck.method import Method, name_of
from limbeck.methods.denoise import Denoising
from limbeck.methods.supervised import Supervised
from limbeck.recipe import Recipe
from limbeck.shipping import of_run
from limbeck.shipping import student as shipped
from limbeck.tasks import LANGUAGE, Task
from limbeck.writing import write, write_json


@dataclass
class Life:
    """One run, from its beginning or from where it was stopped."""

    recipe: Recipe
    folder: Path
    world: World
    observer: Observer
    command: str
    changed: bool = False
    notices: list[str] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def live(self) -> None:
        """Train and measure, or return at once when that was done before.

        Raises:
            RecipeError: this cannot be run; nothing was started.
            Stopped: interrupted, or at a limit, with everything saved.
        """
        fresh = not self.folder.exists()
        with ExitStack() as held:
            if not self._begin(held):
                return
            try:
                self._train()
            except RecipeError:
                if fresh and self.world.main and not self._moved():
                    shutil.rmtree(self.folder)  # nothing was started, so nothing stands in the way of the mended recipe
                raise

    def _moved(self) -> bool:
        """Whether there is a state after the first."""
        return any(int(p.name.removeprefix("step-")) > 0 for p in checkpoint.list_all(self.folder / "checkpoints"))

    def _begin(self, held: ExitStack) -> bool:
        """Whether there is something to do. The main process looks and takes the lock, and all do as it finds."""
        refused: RecipeError | None = None
        done = False
        if self.world.main:
            try:
                done = self._done_before()
                if not done:
                    held.enter_context(only_here(self.folder))
            except RecipeError as error:
                refused = error
        refused, done = self.world.agree((refused, done))
        if refused is not None:
            raise refused
        return not done

    def say(self, sentence: str) -> None:
        self.notices.append(sentence)
        self.observer.say(sentence)

    def _done_before(self) -> bool:
        """Whether the folder holds this very run, finished; another recipe, or a foreign folder, is refused."""
        if not self.folder.exists() or not any(p for p in self.folder.iterdir() if p.name != ".lock"):
            return False
        stored = self.folder / "recipe.yaml"
        if not stored.exists():
            raise RecipeError(
                f"{self.folder} is not empty and not a run folder (no recipe.yaml). Choose another folder with --out."
            )
        if not self.changed:
            different = self.recipe.difference(Recipe.load(stored, partial=True))
            if different:
                raise RecipeError(
                    f"{self.folder} holds a run of another recipe: {'; '.join(different[:8])}. Choose another folder with --out, or change the recipe back."
                )
        result, page = self.folder / "result.json", self.folder / "report.html"  # the page is written last
        if result.exists() and page.exists() and json.loads(result.read_text())["status"] == "finished":
            self.observer.say(f"{self.folder} is finished already; nothing was run.")
            return True
        return False

    def _train(self) -> None:
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
        if teacher is not None and teacher.stored:
            refuse_work_inside(plan)
        for sentence in introduction.untaught(teacher, plan):
            self.say(sentence)
        untrained, self.own_taps = (
            copy.deepcopy(student.model),
            dict(student.paths),
        )  # before a method operates or listens
        for actor in (student, teacher):
            if actor is not None:
                for model in _networks(actor):
                    model.to(world.device)
        if world.main:
            self._write_start(data, student, teacher)
        self._over_usd = self._watch(teacher)
        if world.main:
            for sentence in introduction.of(teacher, data, task, world.device):
                self.say(sentence)
        with Interrupts() as interrupts:
            self._limits(interrupts, started)
            stages, last = self._course(self.folder, plan, student, teacher, task, data, interrupts)
            self.findings = self._findings(last, data) if last is not None else []
            if world.main:
                shipped.write(self.folder / "student", student, task, data, recipe.student_spec())
            without = self._control(untrained, student, task, data, interrupts)
        if world.size > 1:
            world.wait()
        self._finish(started, student, self._as_given(teacher, data), without, task, data, stages)

    def _check_fit(self, data: Data, task: Task, student: Student, teacher: Teacher | None) -> None:
        """Everything that can be known to be wrong before anything is written."""
        for actor in (student, teacher):
            if actor is None:
                continue
            for member in actor.members.values() if isinstance(actor, Teacher) else [actor]:
                view = member.look_at(data.columns)
                view.check(list(data.columns), member.whose, data.source)
        if teacher is not None:
            teacher.check_data(data)
        if task.labels:
            if student.labels and student.labels != task.labels and sorted(student.labels) == sorted(task.labels):
                self.say("the student's classes are learnt in the order of the data, which is not that of its own file")
                student.labels = task.labels
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
        of_run.rehearse(self.recipe.export, student, task, data)
        refuse_unfit(chosen(self.recipe.evaluate), task, data, shapes.get("generated"))

    def _course(
        self,
        folder: Path,
        plan: Any,
        student: Student,
        teacher: Teacher | None,
        task: Task,
        data: Data,
        interrupts: Interrupts,
    ) -> tuple[list[dict[str, Any]], Method | None]:
        """Train in `folder`, from its newest checkpoint if there is one: what each stage was, and the last method."""
        seed = self.recipe.seed
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
            ended = course.run(state)
        except NonFiniteError as error:
            saved = f" The last state saved before: {checkpoint.list_all(keep)[-1]}. Steps that are not finite can be skipped: --on-nonfinite skip"
            raise NonFiniteError(error.what, error.step, error.ids, saved) from error
        finally:
            log.close()
        for sentence in dict.fromkeys(s for method in course.methods for s in method.notices):
            self.say(sentence)
        listed = [
            {
                "name": r.name,
                "method": name_of(type(m)),
                "epochs": r.epochs,
                "steps": r.steps,
                "seconds": round(r.seconds, 3),
                "selected_epoch": r.selected_epoch,
                "validation_loss": r.loss,
                "validation_metric": r.metric,
            }
            for r, m in zip(ended, course.methods)
        ]
        if self.world.main:
            write_json(folder / "stages.json", listed)
        return listed, course.methods[-1] if course.methods else None

    def _findings(self, method: Method, data: Data) -> list[dict[str, Any]]:
        split = data.splits.get("validation") or data.splits["train"]
        return method.findings(validate.batches(split, 256, World(device=self.world.device)))

    def _control(
        self, untrained: torch.nn.Module, student: Student, task: Task, data: Data, interrupts: Interrupts
    ) -> Student | None:
        """The same student without a teacher: trained now, found again, or as it came."""
        wanted = self.recipe.control
        if wanted == "none" or (wanted == "train" and not self._taught()):
            return None
        if wanted not in ("train", "start"):
            return Student(wanted, view=student.view)
        alone = Student(untrained.to(self.world.device), view=student.view, taps=self.own_taps, labels=student.labels)
        _sampled_alike(alone, student)
        if wanted == "start":
            return alone
        folder = self.folder / control.FOLDER
        mark = control.mark(untrained, data, task, self.recipe)
        found = self.world.agree(control.find(self.folder, mark))
        if found is not None:
            if self.world.main:
                control.take(found, folder)
            self.world.wait()
            self.say(f"the control (same student, budget and seed, no teacher) was trained before: {found}")
            shipped.read_into(alone, folder / "student")
            return alone
        self.observer.say("now the control: the same student, budget and seed, without a teacher")
        folder.mkdir(exist_ok=True)
        self._course(folder, _untaught(task, student), alone, None, task, data, interrupts)
        if self.world.main:
            shipped.write(folder / "student", alone, task, data, self.recipe.student_spec())
            control.sign(folder, mark)
        return alone

    def _taught(self) -> bool:
        """Whether a teacher has a part in this run, so that there is something to compare with."""
        plan = self.recipe.build_plan()
        return not isinstance(plan, Supervised) and not (isinstance(plan, Denoising) and self.recipe.teacher is None)

    def _watch(self, teacher: Teacher | None) -> Callable[[], Stopped | None]:
        """Where answers that are paid for are kept, and whether `limit.usd` is reached."""
        return spending.watch(teacher, self.folder, self.recipe.limit.usd, main=self.world.main)

    def _limits(self, interrupts: Interrupts, started: float) -> None:
        hours = self.recipe.limit.hours
        spent_file = self.folder / "spent.json"
        before = json.loads(spent_file.read_text())["seconds"] if spent_file.exists() else 0.0

        def over() -> Stopped | None:
            seconds = before + time.monotonic() - started
            if hours is not None and seconds > hours * 3600:
                if self.world.main:
                    write_json(spent_file, {"seconds": seconds})
                return Stopped(
                    "limit",
                    f"limit.hours={hours:g} is reached after {seconds / 3600:.3g} h. Everything is saved: limbeck resume {self.folder} limit.hours=...",
                )
            return self._over_usd()

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
            write(self.folder / "recipe.yaml", self.recipe.to_yaml(command=self.command))
        facts = environment.facts() | {
            "data": data.source,
            "data_fingerprint": data.fingerprint,
            "student_fingerprint": student.fingerprint(),
        }
        for name, member in (teacher.members if teacher else {}).items():
            facts[f"teacher_fingerprint.{name}"] = member.fingerprint()
        write_json(self.folder / "environment.json", facts)

    def _as_given(self, teacher: Teacher | None, data: Data) -> Teacher | None:
        """The teacher as it was brought, where files can give it back: a method may have trained it on (co-training)."""
        if teacher is None or any(m.source.weights is None or m.source.spec is None for m in teacher.members.values()):
            return teacher
        again = self.recipe.build_teacher()
        assert again is not None
        for member in again.members.values():
            member.look_at(data.columns)
            member.model.to(self.world.device)
        for name, member in again.members.items():
            _sampled_alike(member, teacher.members[name])
        return again

    def _finish(
        self,
        started: float,
        student: Student,
        teacher: Teacher | None,
        without: Student | None,
        task: Task,
        data: Data,
        stages: list[dict[str, Any]],
    ) -> None:
        """Measure everyone on the test split, hold the requirements, write result and report."""
        split = "test" if "test" in data.splits else "validation" if "validation" in data.splits else "train"
        once = validate.batches(data.splits[split], 256, self.world)
        checks = self.recipe.evaluate_choices()
        asked = teacher if teacher is not None and teacher.answers(split) else None
        for actor in (student, asked, without):
            for model in _networks(actor) if actor is not None else []:
                model.eval()
        how: dict[str, Any] = {"checks": checks, "world": self.world, "judge": asked}
        top = measure(asked, once, task, **how) if asked is not None else None
        own, base = (
            None if actor is None else measure(actor, once, task, against=top, **how) for actor in (student, without)
        )
        if not self.world.main or own is None:
            return
        steps = sum(stage["steps"] for stage in stages)
        result = results.result(
            own,
            top,
            base,
            task,
            split=split,
            stages=stages,
            name=self.folder.name,
            command=self.command,
            seed=self.recipe.seed,
            method=self.recipe.method_name(),
            cost={
                "seconds": round(time.monotonic() - started, 2),
                "steps": steps,
                "samples": steps * self.recipe.train.batch_size,
                **({} if (paid := spending.usd(teacher)) is None else {"usd": round(paid, 6)}),
            },
            notices=self.notices,
        )
        result["require"] = requirements.check(self.recipe.require, result)
        results.save_predictions(self.folder / "predictions.safetensors", task, own, top, base)
        if task.name not in (*LANGUAGE, "generation"):
            results.save_samples(self.folder / "samples.safetensors", data.splits[split], own, top or base)
        named = {"teacher": top, "student": own, "control": base}
        wrote = {name: m.written for name, m in named.items() if m is not None and m.written is not None}
        self.findings += [side_by_side(wrote)] if wrote else []
        if self.findings:
            write_json(self.folder / "findings.json", self.findings)
        shipped.card(self.folder / "student", result)
        for sentence in of_run.after_training(self.recipe.export, self.folder, student, task, data, result):
            self.say(sentence)
        write_json(self.folder / "result.json", result)
        shown = {"student": student, "teacher": asked, "control": without}
        samples.record(self.folder / samples.FILE, task, data, split, shown, self.world.device)
        from limbeck import report

        report.write([self.folder], self.folder / "report.html")


def _untaught(task: Task, student: Student) -> Method:
    """What the control learns by: the task alone, of a generator denoising; it is sampled as the student is."""
    if task.name != "generation":
        return Supervised()
    how = student.model.sampling
    return Denoising(sampling_steps=how.steps, solver=how.solver, start=how.start)  # type: ignore[union-attr, arg-type]


def _sampled_alike(one: Actor, other: Actor) -> None:
    """A generator is compared with others of as many steps."""
    if hasattr(other.model, "sampling"):
        one.model.sampling = other.model.sampling


def _networks(actor: Actor) -> list[torch.nn.Module]:
    return [m.model for m in actor.members.values()] if isinstance(actor, Teacher) else [actor.model]
