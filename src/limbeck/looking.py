"""`limbeck inspect` and `limbeck methods`: facts about a thing, and a function that prints them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from limbeck import environment
from limbeck.actors import Actor, Student
from limbeck.caching import form
from limbeck.caching.form import is_cache
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.evaluation import speed
from limbeck.methods import all_methods, evidence, find
from limbeck.models import adapters
from limbeck.objectives import Term
from limbeck.shipping import opened
from limbeck.shipping.showing import look_at_export
from limbeck.signals import named_tensors
from limbeck.sources import STUDENT_FILE, import_from

Look = tuple[Any, Callable[[], None]]


def look(thing: str | None, data: str | None = None) -> Look:
    """Facts about a model, data, a run or a recipe, whichever `thing` is; about this installation for None.

    Raises:
        RecipeError: it is none of these.
    """
    if thing is None:
        return look_at_installation()
    path = Path(thing)
    if is_cache(path):
        return look_at_cache(path)
    if (path / "recipe.yaml").exists():
        return look_at_run(path)
    if path.suffix in (".yaml", ".yml"):
        return look_at_recipe(thing)
    if path.exists() and (exported := opened.facts_of(path)) is not None:
        return look_at_export(path, exported)
    if path.is_dir() and any((folder / STUDENT_FILE).exists() for folder in (path, path / "student")):
        return look_at_model(Student(path), data)
    if path.is_dir() and list(path.glob("*/recipe.yaml")):
        return look_at_runs(path)
    if adapters.folder_of(path) is not None:
        return look_at_model(Actor(path), data)
    if path.exists():
        return look_at_data(thing)
    if ":" in thing:
        found = import_from(thing, "inspect")
        is_model = isinstance(found, nn.Module) or (isinstance(found, type) and issubclass(found, nn.Module))
        return look_at_model(Actor(thing), data) if is_model else look_at_data(thing)
    from limbeck.data.built_in import BUILT_IN

    if thing in BUILT_IN:
        return look_at_data(thing)
    from limbeck.recipe import Recipe

    try:
        Recipe.load(thing)
    except RecipeError as error:
        raise RecipeError(
            f"inspect '{thing}': no such path here ({Path.cwd()}), not module:attribute, no data of ours ({', '.join(BUILT_IN)}), and no named recipe. {error}"
        ) from error
    return look_at_recipe(thing)


def look_at_installation() -> Look:
    """Versions, machine, and which extras are there."""
    facts = environment.facts()
    extras = environment.extras()

    def show() -> None:
        console = Console()
        _pairs(console, facts)
        console.print()
        shown = Table("extra", "packages", "to install it", box=None)
        for name, packages in extras.items():
            told = ", ".join(f"{p} {v}" if v else f"{p} missing" for p, v in packages.items())
            shown.add_row(name, told, Text("" if all(packages.values()) else f"pip install 'limbeck[{name}]'"))
        console.print(shown)

    return {"facts": facts, "extras": extras}, show


def look_at_data(source: str) -> Look:
    """Columns, splits, classes."""
    from limbeck.data import load_data

    data = load_data(source)
    first = next(iter(data.splits.values()))
    batch = first.__getitems__([0])
    facts = {
        "source": data.source,
        "splits": {name: len(split) for name, split in data.splits.items()},
        "columns": {k: list(v.shape[1:]) if isinstance(v, Tensor) else type(v[0]).__name__ for k, v in batch.items()},
        "labels": data.labels,
        "fingerprint": data.fingerprint,
        "notices": data.notices,
    }
    return facts, lambda: print("\n".join([data.describe(), *data.notices]))


def look_at_run(path: Path) -> Look:
    """What a run was and what came of it; never needs its recipe to be readable."""
    result = path / "result.json"
    if not result.exists():
        from limbeck.engine.checkpoint import list_all

        saved = [p.name for p in list_all(path / "checkpoints")]
        facts: dict[str, Any] = {"folder": str(path), "status": "unfinished", "checkpoints": saved}
        return facts, lambda: print(
            f"{path}: not finished; checkpoints: {', '.join(saved) or 'none'}. Go on with: limbeck resume {path}"
        )
    facts = json.loads(result.read_text())

    def show() -> None:
        from limbeck.report.terminal import result_rows, table

        console = Console()
        console.print(
            f"{path}: {facts['method']}, made by limbeck {facts['limbeck']} with: {facts['command']}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(table(result_rows([facts])))
        for stage in facts["stages"]:
            console.print(
                f"stage {stage['name']} ({stage['method']}): {stage['steps']} steps in {stage['seconds']:.1f} s",
                highlight=False,
            )
        if facts["retention"] is not None:
            console.print(f"retention {facts['retention']:.3f}", highlight=False)

    return facts, show


def look_at_cache(path: Path) -> Look:
    """Who was asked about what, and whether every shard still holds the bytes that were written.

    Raises:
        RecipeError: a shard that is missing or damaged.
    """
    header = form.read(path)
    damage = form.damage(path, header, checksums=True)
    if damage:
        more = f" And {len(damage) - 1} more." if len(damage) > 1 else ""
        raise RecipeError(
            f"{path}: {damage[0]}{more} Mend it (only what is damaged is asked again): limbeck cache RECIPE --out {path}"
        )
    told, shards = header["teacher"], header["shards"]
    facts = {
        "folder": str(path),
        "status": "finished" if header["complete"] else "unfinished",
        "teacher": told["from"],
        "teacher_fingerprint": told["fingerprint"],
        "view": told["view"],
        "data": header["data"]["source"],
        "data_fingerprint": header["data"]["fingerprint"],
        "signals": header["signals"],
        "answers": {
            split: sum(p["rows"] for p in header["passes"] if p["split"] == split)
            for split in dict.fromkeys(p["split"] for p in header["passes"])
        },
        "views": header["views"],
        "shards": len(shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "checksums": "hold" if header["complete"] else "not there yet",
    }

    def show() -> None:
        console = Console()
        if not header["complete"]:
            print(f"{path} is not finished. Go on with: limbeck cache RECIPE --out {path}")
        signals = {
            name: f"{spec['dtype']} {spec['shape']}" + (f", the {spec['top_k']} most likely" if "top_k" in spec else "")
            for name, spec in header["signals"].items()
        }
        counts = ", ".join(f"{count:,} of {split}" for split, count in facts["answers"].items())
        _pairs(console, facts | {"signals": "; ".join(f"{n}: {t}" for n, t in signals.items()), "answers": counts})

    return facts, show


def look_at_runs(folder: Path) -> Look:
    """The runs in a folder: how each is called, whether it finished, and its metric."""
    found = {}
    for recipe in sorted(folder.glob("*/recipe.yaml")):
        facts = look_at_run(recipe.parent)[0]
        student, task = facts.get("student") or {}, facts.get("task") or {}
        found[str(recipe.parent)] = {
            "status": facts["status"],
            "method": facts.get("method"),
            "metric": task.get("metric"),
            "value": student.get("metric"),
        }

    def show() -> None:
        shown = Table("run", "method", "status", "metric", "on the student", box=None)
        for name, run in found.items():
            value = run["value"]
            told = "" if value is None else f"{value:.4f}"
            shown.add_row(name, run["method"] or "", run["status"], run["metric"] or "", told)
        Console().print(shown)

    return found, show


def look_at_recipe(source: str) -> Look:
    """The recipe with every default written out."""
    from limbeck.recipe import Recipe

    recipe = Recipe.load(source, partial=True)
    return recipe.to_mapping(), lambda: print(recipe.to_yaml().rstrip())


def look_at_model(actor: Actor, data: str | None) -> Look:
    """Every place one can tap, with parameters, and shapes when data were given."""
    places: dict[str, dict[str, Any]] = {}
    for path, module in actor.model.named_modules():
        if path:
            places[path] = {"type": type(module).__name__, "parameters": speed.parameters(module)}
    shapes = _shapes(actor, data) if data is not None else {}
    for path, shape in shapes.items():
        places.setdefault(path, {"type": "", "parameters": 0})["shape"] = shape
    facts = {
        "model": type(actor.model).__name__,
        "parameters": actor.parameters_count(),
        "bytes": speed.size_bytes(actor.model),
        "taps": places,
    }

    def show() -> None:
        console = Console()
        console.print(
            f"{facts['model']}: {facts['parameters']:,} parameters, {facts['bytes']:,} bytes", highlight=False
        )
        shown = Table("tap path", "layer", "parameters", "shape of one sample", box=None)
        for path, place in places.items():
            shown.add_row(path, place["type"], f"{place['parameters']:,}", " ".join(map(str, [place.get("shape", "")])))
        console.print(shown)
        if data is None:
            console.print("Shapes too: limbeck inspect MODEL --data DATA", highlight=False)

    return facts, show


def _shapes(actor: Actor, data: str) -> dict[str, Any]:
    """Shapes (without the batch) of what every submodule gives for two samples of the data."""
    found = _data(data)
    batch = next(iter(found.splits.values())).__getitems__([0, 1])
    view = actor.look_at(found.columns)
    view.check(list(found.columns), "model", found.source)
    shapes: dict[str, Any] = {}
    handles = []
    for path, module in actor.model.named_modules():

        def note(module: nn.Module, args: Any, value: Any, path: str = path or "output") -> None:
            tensors = named_tensors(value)
            shapes[path] = (
                list(tensors[""].shape[1:]) if "" in tensors else {k: list(t.shape[1:]) for k, t in tensors.items()}
            )

        handles.append(module.register_forward_hook(note))
    actor.model.eval()
    try:
        with torch.no_grad():
            actor(batch)
    except RecipeError:
        raise
    except Exception as error:  # whatever a network says to what it cannot take
        shown = ", ".join(
            f"{key} {list(batch[key].shape)}" for key in (*view.keys, *view.named.values()) if key in batch
        )
        last = f" after {list(shapes)[-1]}" if shapes else ""
        raise RecipeError(
            f"{type(actor.model).__name__} could not take two samples of {data} ({shown}); it stopped{last}: {error}. "
            "Where the columns need options (an image's size, a spectrogram's mels), give a recipe that has them: --data recipe.yaml"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _data(source: str) -> Data:
    """Data by path or name, or those of a recipe."""
    from limbeck.data import load_data
    from limbeck.recipe import Recipe

    path = Path(source)
    is_recipe = path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").exists()
    return Recipe.load(source, partial=True).build_data() if is_recipe else load_data(source)


def look_at_methods(needs: str | None = None) -> Look:
    """Every listed method with its summary."""
    cards = {
        name: cls.card
        for name, cls in all_methods().items()
        if cls.card.listed and (needs is None or needs in cls.card.needs)
    }

    def show() -> None:
        shown = Table("method", "what it does", "needs of the teacher", "use it when", box=None, padding=(0, 2, 0, 0))
        for name, card in cards.items():
            shown.add_row(name, card.summary, ", ".join(card.needs) or "nothing", card.use_when)
        Console().print(shown)
        print("One method's card and options: limbeck methods NAME")

    return [asdict(card) for card in cards.values()], show


def look_at_method(name: str) -> Look:
    """One method's card and options."""
    cls = find(name)
    if isinstance(cls, Term):
        raise RecipeError(f"'{name}' is a loss function; it becomes a method of one term: method={name}")
    fields = cls.option_model().model_fields
    options = {
        key: {
            "default": getattr(field.default, "spec", lambda field=field: field.default)(),
            "type": _plain(field.annotation),
        }
        for key, field in fields.items()
    }
    measured = evidence().get(cls.card.name, []) if find(cls.card.name) is cls else []
    known = asdict(cls.card)
    facts = known | {"options": options, "class": f"{cls.__module__}:{cls.__qualname__}", "measured": measured}

    def show() -> None:
        console = Console()
        told = {k: v for k, v in known.items() if k not in ("listed", "play")} | (known["play"] or {})
        _pairs(console, {k: ", ".join(v) if isinstance(v, tuple) else v for k, v in told.items() if v})
        console.print("\n" + inspect.cleandoc(cls.__doc__ or ""), highlight=False, markup=False, soft_wrap=True)
        if options:
            console.print("\noptions", highlight=False)
            shown = Table("option", "default", "type", box=None)
            for key, option in options.items():
                shown.add_row(key, Text(str(option["default"])), Text(option["type"]))
            console.print(shown)
        if measured:
            console.print(
                "\nmeasured (difference in the metric, above zero is better, 95 % over seeds; docs/evidence.md has the whole)",
                highlight=False,
            )
            figures = Table("data", "as", "minus", "difference", "seeds", box=None)
            for one in measured:
                between = f" [{one['low']:+.3f}, {one['high']:+.3f}]" if "low" in one else ""
                figures.add_row(
                    one["data"], Text(one["arm"]), one["than"], Text(f"{one['mean']:+.3f}{between}"), str(one["seeds"])
                )
            console.print(figures)

    return facts, show


def _plain(annotation: Any) -> str:
    """The type of an option as people say it."""
    if annotation is Any:  # a number, or one that changes with the steps
        return "number or schedule"
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(_plain(part) for part in get_args(annotation) if part is not NoneType)
    return (
        annotation.__name__
        if isinstance(annotation, type) and get_origin(annotation) is None
        else str(annotation).replace("typing.", "")
    )


def _pairs(console: Console, pairs: dict[str, Any]) -> None:
    shown = Table(box=None, show_header=False)
    for key, value in pairs.items():
        shown.add_row(key.replace("_", " "), Text(str(value)))  # a text: what stands in brackets is no style
    console.print(shown)
