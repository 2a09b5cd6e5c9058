"""Teacher and Student: a network, what it is shown, and where one listens to it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limbeck.errors import RecipeError, nearest
from limbeck.evaluation import speed
from limbeck.listening import Enough, Hook, Recorder, Replace, Visit
from limbeck.precision import in_precision
from limbeck.randomness import seeds_for
from limbeck.signals import OUTPUT, Head, Place, Projection, Signals, Tap, select, signals_of_output
from limbeck.sketches import Sketch
from limbeck.sources import Source, fingerprint, load_model
from limbeck.views import View

if TYPE_CHECKING:
    from limbeck.data.tensors import Data
    from limbeck.language.tokens import Tokens

Batch = Mapping[str, Any]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class Actor:
    """What a teacher and a student have in common.

    Args:
        model: a module, or a string: a path that exists, `module:attribute`, or a hub id (see `limbeck.sources`).
        view: what the model is shown of a batch; omitted: the parameters of its `forward` that are columns of the data.
        taps: names for the places one listens to, `{"hint": "encoder.layer3", "logits": "output.0"}`.
        weights: a safetensors file (or a `.pt` of plain tensors) to load into the model.
        labels: the names of the classes in the order of the logits.
        args: arguments for the model's constructor, when `model` names a class.
        dtype: `fp32`, `bf16`, `fp16` or a torch dtype, for the model's parameters.
        tokenizer: the folder (or hub name) of its tokenizer, where that is not beside the model.
    """

    whose = "model"
    stored = False  # whether answers come from a store: nothing is computed, so there is nothing to time or to change
    far = False  # whether they come over the network: what takes time is not the network of the model

    def __init__(
        self,
        model: nn.Module | str | Path,
        *,
        view: View | str | list | dict | None = None,
        taps: Mapping[str, str] | None = None,
        weights: str | Path | None = None,
        labels: Iterable[str] | None = None,
        args: Mapping[str, Any] | None = None,
        dtype: str | torch.dtype | None = None,
        tokenizer: str | Path | None = None,
    ):
        loaded: Source = load_model(model, args=args, weights=weights, whose=self.whose)
        loaded.tokenizer = str(tokenizer) if tokenizer is not None else loaded.tokenizer
        self.source = loaded
        self.model = loaded.model
        self.view: View | None = View.of(view if view is not None else loaded.view) if (view or loaded.view) else None
        self.labels = list(map(str, labels)) if labels is not None else loaded.labels
        if dtype is not None:
            if isinstance(dtype, str) and dtype not in _DTYPES:
                raise RecipeError(f"{self.whose}.dtype '{dtype}' is not known. {nearest(dtype, _DTYPES)}")
            self.model.to(_DTYPES[dtype] if isinstance(dtype, str) else dtype)
        self.places: dict[str, Place] = {}
        self.paths: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.may_stop_early = True
        self._calls: Counter[str] = Counter()
        self._recorder = Recorder()
        self._tokenizer: Tokens | None = None
        self._handles: dict[str, RemovableHandle] = {}
        self._modules: list[nn.Module] | None = None
        places = dict(taps or loaded.taps or {})
        if loaded.head is not None:  # what the head is given is listened to, whatever else the user names
            places.setdefault(loaded.head.hidden, loaded.taps[loaded.head.hidden])
        for name, path in places.items():
            self.tap(name, path)
        if isinstance(getattr(self.model, "whose", None), str):  # a network that says in sentences whose it is
            self.model.whose = self.whose  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, view={self.view!r}, taps={self.paths!r})"

    def tap(self, name: str, path: str) -> Self:
        """Listen at `path` under the name `name`, from the next call on.

        Raises:
            RecipeError: the network has no such place, or the name already means another one.
        """
        if name in self.paths:
            if self.paths[name] == path:
                return self
            raise RecipeError(f"{self.whose}: '{name}' already names {self.paths[name]}; give {path} another name.")
        self._listen(name, path)
        return self

    def listen_again(self) -> None:
        """After an operation on the network: listen to the modules that stand in the named places now."""
        self._modules = None
        for handle in self._handles.values():
            handle.remove()
        for name, path in self.paths.items():
            self._listen(name, path)

    def _listen(self, name: str, path: str) -> None:
        place = Tap(path).resolve(self.model)
        self.places[name], self.paths[name] = place, path
        if place.module:
            module, hook = self.model.get_submodule(place.module), Hook(self._recorder, name, place)
            register = module.register_forward_pre_hook if place.input else module.register_forward_hook
            self._handles[name] = register(hook, with_kwargs=True)  # type: ignore[operator]
            self._calls.clear()  # how often each tap fires is learned afresh

    def __call__(
        self,
        batch: Batch,
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """Show the model its view of `batch` and give back what the taps heard.

        Args:
            batch: tensors by column.
            replace: `{tap: function}`: the tap's value is replaced by `function(value)` for this call only, and what
                lies behind sees the replaced one. Nothing is left behind, also when something raises in between.
            until: stop the forward pass after this tap.
            reads: the signals that will be read. When none of them is the output, the forward pass stops after the
                last of them.

        Raises:
            RecipeError: an unknown tap, or a column that the batch lacks.
        """
        for name in replace or ():
            if name not in self.places and name != OUTPUT:
                raise RecipeError(f"{self.whose} has no tap '{name}' to replace. {nearest(name, self.places)}")
        wanted = {until} if until is not None else set(reads) if reads is not None else None
        if until is not None and until not in self.places:
            raise RecipeError(f"{self.whose} has no tap '{until}' to stop at. {nearest(until, self.places)}")
        args, kwargs = self.shown(batch)
        if self.source.head is not None:
            kwargs = {**kwargs, **self.source.head.keywords}
        visit = Visit(replace or {}, self._stop_after(wanted))
        self._recorder.visits.append(visit)
        output, finished = None, True
        try:
            with self._manner(), in_precision():
                output = self.model(*args, **kwargs)
        except Enough:
            finished = False
        finally:
            self._recorder.visits.pop()
        if finished:
            if not self._calls:
                self._calls = visit.fired
            missed = [n for n in visit.replace if n in self.places and self.places[n].module and not visit.fired[n]]
            if missed:
                raise RecipeError(
                    f"{self.whose}: '{missed[0]}' ({self.paths[missed[0]]}) was to be replaced, and this forward pass did not come by it. "
                    "Was the module exchanged (then yield Rebuilt, or call listen_again()), or is the branch not taken?"
                )
            output = visit.replace[OUTPUT](output) if OUTPUT in visit.replace else output
            return self._signals(output, visit)
        return Signals(visit.values)

    def shown(self, batch: Batch) -> tuple[tuple, dict[str, Any]]:
        """The arguments with which the model is called for this batch."""
        if self.view is None:
            self.look_at(batch)
        assert self.view is not None
        args, kwargs = self.view(batch)
        if not any(transform.adds() for transform in self.view.transforms):
            return args, kwargs
        device = next(
            (p.device for p in self.model.parameters()), torch.device("cpu")
        )  # what was made of texts is on the CPU

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        return tuple(map(moved, args)), {name: moved(value) for name, value in kwargs.items()}

    def look_at(self, columns: Iterable[str]) -> View:
        """Settle a view that was not given: the parameters of `forward` that are columns of the data.

        Raises:
            RecipeError: no parameter has the name of a column, or the given view names a column that is not there.
        """
        names = [c for c in columns if c not in ("id", "view_seed", "ghost")]
        mine = self._mine(names)
        if self.view is None and self.source.view_for is not None:
            proposed = self.source.view_for(
                [*mine, *names] if mine else columns
            )  # what the model's own files say of its input
            self.view = None if proposed is None else View.of(_renamed(proposed, mine))
        if self.view is None:
            parameters = inspect.signature(self.model.forward).parameters.values()
            named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            found = {p.name: mine.get(p.name, p.name) for p in named if p.name in mine or p.name in names}
            missing = [p.name for p in named if p.default is p.empty and p.name not in found]
            if not found or missing:
                raise RecipeError(
                    f"view of the {self.whose}: forward of {type(self.model).__name__} takes "
                    f"{', '.join(p.name for p in named) or 'nothing by name'}, the data have {', '.join(names)}. "
                    f"Say what it is shown: {self.whose}.view=[{names[0] if names else 'column'}]"
                )
            self.view = View(**found)  # type: ignore[arg-type]
        return self.view

    def own(self, batch: Batch) -> Batch:
        """The batch as this model means it: its own columns (`teacher_target`, say) under their plain names too."""
        return {**batch, **{name: batch[column] for name, column in self._mine(batch).items()}}

    def _mine(self, names: Iterable[str]) -> dict[str, str]:
        """Columns that are this model's own, such as the tokens of its own tokenizer: plain name to column."""
        return {name.removeprefix(f"{self.whose}_"): name for name in names if name.startswith(f"{self.whose}_")}

    @property
    def tokenizer(self) -> Tokens | None:
        """How this model writes texts as numbers; None where no tokenizer was found beside it."""
        if self._tokenizer is None and self.source.tokenizer is not None:
            from limbeck.language.tokens import Tokens

            self._tokenizer = Tokens.load(self.source.tokenizer)
        return self._tokenizer

    def probe(self, batch: Batch) -> Mapping[str, tuple[int, ...]]:
        """Run once without a graph, in eval mode, to learn every signal's shape (without the batch dimension).

        Raises:
            RecipeError: the network writes into its input, which the other network and later updates are shown too.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        before = {key: value.clone() for key, value in batch.items() if isinstance(value, Tensor)}
        try:
            with torch.no_grad():
                signals = self(batch)
        finally:
            for module, mode in modes:
                module.training = mode
        changed = [key for key, value in before.items() if not torch.equal(batch[key].nan_to_num(), value.nan_to_num())]
        if changed:
            raise RecipeError(
                f"the {self.whose} ({type(self.model).__name__}) writes into its input '{changed[0]}': its forward changes the batch, which "
                "the others are shown too. Let it work on a new tensor: x = x + 1 in place of x += 1, relu(x) in place of relu_(x)"
            )
        self.shapes = {
            name: tuple(value.shape[1:])
            for name, value in signals.items()
            if isinstance(value, (Tensor, Projection, Sketch))
        }
        return self.shapes

    def lacks(self, name: str) -> str:
        """The sentence for somebody who reads a signal that this model does not give."""
        return (
            f"the {self.whose} does not give '{name}'. {nearest(name, self.shapes)} "
            f"Name the place: {self.whose}.taps={{{name}: path}}; limbeck inspect MODEL lists the paths."
        )

    def all_modules(self) -> list[nn.Module]:
        """The model and everything in it, listed once; anew after `listen_again`."""
        if self._modules is None or self._modules[0] is not self.model:
            self._modules = list(self.model.modules())
        return self._modules

    def parameters_count(self) -> int:
        """How many parameters the model has."""
        return sum(p.numel() for p in self.model.parameters())

    def bytes_count(self) -> int:
        """Bytes of the model's state as it is saved; shared tensors count once."""
        return speed.size_bytes(self.model)

    def fingerprint(self) -> str:
        """16 hex digits that change with any weight."""
        return fingerprint(self.model)

    def _stop_after(self, wanted: Collection[str] | None) -> Counter[str] | None:
        if wanted is None or not self.may_stop_early or not self._calls:
            return None
        if not all(name in self.places and self.places[name].module for name in wanted):
            return None
        if any(self._calls[name] != 1 for name in wanted):  # how often a loop comes by may change with the batch
            return None
        return Counter(wanted)

    def _signals(self, output: Any, visit: Visit) -> Signals:
        own = {n: p for n, p in self.places.items() if not p.module}
        for name, place in own.items():
            visit.values[name] = visit.meet(name, (), select(output, place.keys))
        signals = Signals(visit.values)
        if not own or isinstance(output, (Tensor, Mapping, Projection)):
            try:
                named = signals_of_output(output, self.whose)
            except RecipeError:
                if not signals:
                    raise
                named = Signals()
            for name, value in named.items():
                signals.setdefault(name, value)
        if self.source.head is not None:
            signals["logits"] = self._logits(self.source.head, signals[self.source.head.hidden])
        return signals

    def _logits(self, head: Head, hidden: Tensor) -> Projection:
        return head.of(self.model, hidden)

    def _manner(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Student(Actor):
    """The network that learns, with its view and its taps.

    `layers` keeps so many blocks of a network of transformers (evenly spread), or those of these numbers, with their
    weights: see `limbeck.models.shrink`. Taps are those of the smaller network.
    `lora` (`{rank: 64, alpha, targets, dropout, whole}`) lets low-rank adapters learn in place of the network's own
    weights: see `limbeck.models.lora`. They are merged into the weights when the student ships.
    """

    whose = "student"

    def __init__(
        self,
        model: nn.Module | str | Path,
        *,
        layers: int | Collection[int] | None = None,
        lora: Mapping[str, Any] | None = None,
        **keys: Any,
    ):
        super().__init__(model, **keys)
        self.layers = layers if layers is None or isinstance(layers, int) else list(layers)
        if self.layers is not None:
            from limbeck.models.shrink import shrink

            self.model = self.source.model = shrink(self.model, layers=self.layers)
            self.listen_again()
        self.lora = dict(lora) if lora is not None else None
        if self.lora is not None:
            from limbeck.models.lora import adapt

            adapt(self.model, **self.lora, reloadable=self.source.weights is not None)
            self.listen_again()

    def merge(self) -> None:
        """Make adapters part of the weights, for good: the network is then as any other of its kind."""
        from limbeck.models.lora import merge

        if merge(self.model):
            self.listen_again()


class Teacher(Actor):
    """A network that teaches, with its view and its taps.

    It runs in eval mode. `mode` is set by the method: `frozen` keeps no graph; `through` lets gradients reach the
    teacher's inputs and replaced features although its parameters do not learn. A teacher that is a trainee of the
    current update (`learning`, set by the engine) runs as any network in training does.
    """

    whose = "teacher"
    sketches = False  # whether its logits are sketches: some classes, and the mass of the rest

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Self:
        """A network that teaches; the path of a cache makes a `limbeck.teachers.stored.Stored`, that of logits which
        DistillKit captured a `limbeck.teachers.captured.Captured`."""
        if cls is Teacher and isinstance(model, (str, Path)):
            from limbeck.teachers import captured, stored

            for kind, is_one in ((stored.Stored, stored.is_cache), (captured.Captured, captured.is_captured)):
                if is_one(model):
                    return object.__new__(kind)  # type: ignore[return-value]
        return object.__new__(cls)

    def __init__(
        self,
        model: nn.Module | str | Path,
        *,
        view: View | str | list | dict | None = None,
        taps: Mapping[str, str] | None = None,
        weights: str | Path | None = None,
        labels: Iterable[str] | None = None,
        label_map: str | Mapping[str, str] = "name",
        args: Mapping[str, Any] | None = None,
        dtype: str | torch.dtype | None = None,
        tokenizer: str | Path | None = None,
    ):
        super().__init__(
            model, view=view, taps=taps, weights=weights, labels=labels, args=args, dtype=dtype, tokenizer=tokenizer
        )
        self.label_map = label_map
        self.mode: Literal["frozen", "through"] = "frozen"
        self.learning = False

    @property
    def members(self) -> dict[str, Teacher]:
        """The single teachers in this one; a mixture has several."""
        return {"teacher": self}

    def check_data(self, data: Data) -> None:
        """Refuse data that this teacher cannot be asked about; a network can be asked about any."""

    def answers(self, split: str) -> bool:
        """Whether it can be asked for the logits of this split as it is, without training's random views."""
        return True

    def view_seeds(self, ids: Int64[Tensor, "batch"], seed: int, epoch: int) -> Int64[Tensor, "batch"]:
        """The seeds of the random views in which samples are shown in an epoch of training, to teacher and student."""
        return seeds_for(ids, seed, epoch)

    def _manner(self) -> AbstractContextManager[Any]:
        return _TeachersManner(self)

    def _logits(self, head: Head, hidden: Tensor) -> Projection:
        found = super()._logits(head, hidden)
        if self.learning or self.mode == "through":
            return found
        bias = None if found.bias is None else found.bias.detach()
        return replace(found, weight=found.weight.detach(), bias=bias)


class _TeachersManner:
    """Eval mode and no graph (unless `through`), for the length of one call; costs nothing where both hold already."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        self.modes: list[tuple[nn.Module, bool]] = []
        self.grad: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> None:
        teacher = self.teacher
        if teacher.learning:
            return
        self.modes = [
            (module, True) for module in teacher.all_modules() if module.training
        ]  # any: layers may be shared
        if self.modes:
            teacher.model.eval()
        if teacher.mode == "frozen":
            self.grad = torch.no_grad()
            self.grad.__enter__()

    def __exit__(self, *problem: Any) -> None:
        if not isinstance(self.grad, nullcontext):
            self.grad.__exit__(*problem)
        for module, mode in self.modes:
            module.training = mode


def _renamed(view: Any, columns: Mapping[str, str]) -> Any:
    """A proposed view with a model's own columns in the places of their plain names."""
    if not columns or not isinstance(view, Mapping):
        return view
    named = {name: columns.get(column, column) for name, column in view.get("named", {}).items()}
    changed = [{**t, "key": columns.get(t["key"], t["key"])} if "key" in t else t for t in view.get("transforms", ())]
    return {**view, "named": named} | ({"transforms": changed} if changed else {})
