"""Ask a teacher once, and keep its answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import nn

from limbeck import __version__, layers, spending
from limbeck.actors import Teacher
from limbeck.caching import encoding, form, packing, wanted
from limbeck.caching.asking import Asker, drawn
from limbeck.caching.sketch import rows
from limbeck.caching.writer import Folder, Writer
from limbeck.data.tensors import Data
from limbeck.engine.processes import World
from limbeck.engine.trainer import Observer, Silent
from limbeck.engine.validate import to_device
from limbeck.errors import RecipeError
from limbeck.locking import only_here
from limbeck.method import Progress
from limbeck.recipe import Recipe, RecipeKeys
from limbeck.signals import Projection
from limbeck.teachers.mixture import Mixture
from limbeck.teachers.stored import Stored, fingerprints

if TYPE_CHECKING:
    from limbeck.run import Run

_LOOKED_AT = 8  # samples of a language model, from which it is told how many bytes a token takes


def cache(
    recipe: Recipe | Run | str | Path | None = None,
    /,
    *settings: str,
    out: str | Path,
    ray: str | None = None,
    observer: Observer | None = None,
    **keys: Unpack[RecipeKeys],
) -> Teacher:
    """Ask the recipe's teacher about all of its data, once, and keep the answers: a Teacher that needs no network.

    What is stored is what the recipe's method reads, or what `cache.signals` names, of the splits in `cache.splits`
    (all). Where the teacher's view draws at random, training rows are asked in `cache.views` views; view v has the seeds
    that epoch v of a training with the recipe's seed has, so with as many views as epochs the training is the same as with
    the teacher itself, and with fewer they come round again. The same call into the same folder goes on where it was
    stopped, wherever that was, and mends shards that were damaged.

    Args:
        recipe, settings, keys: as for `limbeck.distill`; it needs no student when `cache.signals` says what to store.
        out: the folder.
        ray: `local`, `local:2` (so many workers) or the address of a Ray cluster: its workers ask, this process writes.
        observer: told of the progress.

    Raises:
        RecipeError: this cannot be asked, or the folder holds the answers to another question.
    """
    resolved = _resolve(recipe, settings, dict(keys))
    world, observer, folder = World.here(), observer or Silent(), Path(out)
    teacher, data, header, said = prepare(resolved, world, folder)
    for sentence in [*data.notices, *resolved.notices, *said] if world.main else []:
        observer.say(sentence)
    with ExitStack() as held:
        place = Folder(folder, header)
        missing, refused = _begin(place, held, world)
        if refused is not None:
            raise refused
        if missing:
            if ray is None:
                _ask(
                    place, Asker(teacher, data, header, world.device, resolved.train.workers), missing, world, observer
                )
            else:
                from limbeck.caching import workers

                workers.ask(place, resolved, missing, ray, observer)
            world.wait()
            if world.main:
                place.end()
            world.wait()
        elif world.main:
            observer.say(f"{folder} is finished already, and every checksum holds; nothing was asked.")
    return Stored(folder, label_map=teacher.label_map)


def prepare(recipe: Recipe, world: World, folder: Path) -> tuple[Teacher, Data, dict[str, Any], list[str]]:
    """The teacher, ready to be asked; the data; what will be asked, as `cache.json` says it; and sentences about it."""
    data = recipe.build_data()
    teacher = encoding.asked(recipe, data, world)
    if teacher is None:
        raise RecipeError("the recipe has no teacher, so there is nobody to ask. teacher=my_models:Net")
    if teacher.stored:
        raise RecipeError(
            "the teacher is a cache itself: its answers are stored already. Give the teacher that was asked."
        )
    if any(member.sketches for member in teacher.members.values()):
        raise RecipeError(
            "this teacher is asked over the network, and every answer is kept already (answers-*.jsonl beside the run folders): "
            "nothing is asked or paid twice. Use it as the teacher; a cache would hold the same answers"
        )
    spending.watch(teacher, folder, recipe.limit.usd, main=False)
    for member in teacher.members.values():
        member.look_at(data.columns).check(list(data.columns), member.whose, data.source)
        member.model.to(world.device).eval()
    keys = recipe.cache
    splits = list(keys.splits or data.splits)
    for name in splits:
        data[name]  # refused where there is none
    generates = isinstance(teacher, encoding.Encoder)
    names, why, paired = (wanted.encoded if generates else wanted.signals)(recipe, teacher, data, world)
    segmentation = recipe.task.use == "segmentation"
    language = "answer" in data.columns or "answer" in data[splits[0]].__getitems__([0])
    batch = data[splits[0]].__getitems__(list(range(min(_LOOKED_AT if language else 2, len(data[splits[0]])))))
    batch = to_device(batch, world.device)
    values, own = _probe(teacher, batch, names), teacher.own(batch)
    packings = {
        name: packing.of_tokens(value, name, keys, recipe.seed, own)
        or packing.of(_whole(value), name, keys.dtype, keys.top_k or "all", segmentation)
        for name, value in ((name, values[name]) for name in names)
    }
    random = drawn(teacher, data, world.device)
    views = {"count": keys.views, "seed": recipe.seed} if random else None
    train = recipe.train
    size = train.micro_batch if isinstance(train.micro_batch, int) else train.batch_size
    sizes: list[int] = [_bytes(packings[name], values[name], own) for name in names]
    row = sum(sizes) + 8
    passes: list[dict[str, Any]] = [
        {"split": name, "view": view, "rows": len(data[name])}
        for name in splits
        for view in (range(keys.views) if random and name == "train" else (None,))
    ]
    size_gb, most = sum(part["rows"] for part in passes) * row / 1e9, recipe.limit.disk_gb
    if most is not None and size_gb > most:
        raise RecipeError(
            f"the answers need {size_gb:.3g} GB, and limit.disk_gb is {most:g}. Store less: cache.top_k=64 (cache.token_bytes=60 of a language model), cache.dtype=fp16, fewer cache.views or cache.splits."
        )
    header = {
        "limbeck": __version__,
        "format": form.FORMAT,
        "complete": False,
        "teacher": _told(teacher) | {"embedding_width": _embedding_width(teacher, batch)},
        "data": {"source": data.source, "fingerprint": data.fingerprint},
        "signals": {name: packings[name].spec() for name in names},
        "paired": paired,
        "passes": passes,
        "views": views,
        "precision": "fp32" if generates else _precision(train.precision, world),  # encoders have one of their own
        "batch": size,
        "bytes_per_row": row,
        "rows_per_shard": form.rows_per_shard(row, size),
        "shards": [],
        **({"shown": teacher.told} if isinstance(teacher, encoding.Encoder) else {}),
    }
    return teacher, data, header, _said(header, why, splits)


def _said(header: dict[str, Any], why: str, splits: list[str]) -> list[str]:
    rows = sum(part["rows"] for part in header["passes"])
    shown = {
        name: f"{spec['dtype']} {spec['shape']}" + packing.described(spec) for name, spec in header["signals"].items()
    }
    said = [
        f"stored: {'; '.join(f'{name} ({how})' for name, how in shown.items())}, {why}; of {', '.join(splits)}: {rows:,} answers, "
        f"{rows * header['bytes_per_row'] / 1e6:,.1f} MB"
    ]
    if header["views"]:
        said.append(
            f"the teacher's view draws at random: training is asked in {header['views']['count']} views (cache.views), one per epoch, "
            "and the student will be shown the same ones"
        )
    if "logits" not in header["signals"] and "shown" not in header:
        said.append("no logits are stored, so the teacher's own figures will not be known: add logits to cache.signals")
    return said


def _told(teacher: Teacher) -> dict[str, Any]:
    """What is kept of a teacher when it is gone."""
    members = teacher.members
    views = {name: member.view.spec() for name, member in members.items() if member.view is not None}
    columns = list(dict.fromkeys(c for m in members.values() if m.view is not None for c in m.view.columns))
    single = not isinstance(teacher, Mixture)
    paths = teacher.paths if single else {f"{n}.{t}": p for n, m in members.items() for t, p in m.paths.items()}
    file = teacher.source.weights if single else None
    return {
        "name": " + ".join(type(member.model).__name__ for member in members.values()),
        "from": " and ".join(member.source.describe() for member in members.values()),
        "fingerprint": fingerprints(teacher),
        "weights": form.sha256(file) if file is not None and file.is_file() else None,
        "parameters": teacher.parameters_count(),
        "bytes": teacher.bytes_count(),
        "dtype": sorted({str(p.dtype) for member in members.values() for p in member.model.parameters()}),
        "by": teacher.by if isinstance(teacher, Mixture) else None,
        "view": next(iter(views.values())) if single else columns,
        "views": views,
        "taps": paths,
        "labels": teacher.labels,
        "tokenizer": teacher.source.tokenizer if single else None,
    }


def _embedding_width(teacher: Teacher, batch: dict[str, Any]) -> int:
    """What methods ask of a network that they cannot look at any more; 0 where there is no one embedding."""
    if isinstance(teacher, Mixture):
        return 0
    try:
        last = teacher.model.get_submodule(layers.classifier_path(teacher, batch))
    except RecipeError:
        return 0
    return last.in_features if isinstance(last, nn.Linear) else 0


def _probe(teacher: Teacher, batch: dict[str, Any], names: list[str]) -> dict[str, Any]:
    with torch.no_grad():
        signals = teacher(batch, reads=names)
    return {n: s for n, s in signals.items() if n in names}


def _whole(value: Any) -> Any:
    return value.materialise() if isinstance(value, Projection) else value


def _bytes(how: packing.Packing, value: Any, batch: Mapping[str, Any]) -> int:
    """Of a sample, where one more or less like those of the batch."""
    if isinstance(
        how, packing.Tokens
    ):  # as the tokens were counted, and not as they came out: that may differ in a bit
        return math.ceil(rows.HEAD + 8 + how.token_bytes * float(batch["answer"].sum()) / len(batch["answer"]))
    return sum(t[0].numel() * t.element_size() for t in how.pack(_whole(value)).values())


def _precision(asked: str, world: World) -> str:
    """As the engine settles it."""
    if asked != "auto":
        return asked
    return "bf16" if world.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def _begin(place: Folder, held: ExitStack, world: World) -> tuple[list[int], RecipeError | None]:
    """The main process looks and takes the lock, and all do as it finds."""
    found: tuple[list[int], RecipeError | None] = ([], None)
    if world.main:
        try:
            held.enter_context(only_here(place.path))
            found = (place.begin(), None)
        except RecipeError as error:
            found = ([], error)
    return world.agree(found)


def _ask(place: Folder, asker: Asker, missing: list[int], world: World, observer: Observer) -> None:
    """Ask for this process's share of the shards, and write them."""
    mine = [place.shards[number] for number in missing[world.rank :: world.size]]
    size = asker.header["batch"]
    steps = sum(math.ceil(shard.rows / size) for shard in mine)
    done = 0
    observer.stage("cache", steps, 0)
    with Writer(place.path, world.rank) as writer:
        for shard, tensors in asker.ask(mine):
            writer.add(shard, tensors)
            done += math.ceil(shard.rows / size)
            observer.step(Progress(done - 1, steps), math.nan, math.nan)


def _resolve(recipe: Recipe | Run | str | Path | None, settings: tuple[str, ...], keys: dict[str, Any]) -> Recipe:
    from limbeck.run import Run

    if isinstance(recipe, Run):
        recipe = recipe.recipe
    base = Recipe.of({}) if recipe is None else Recipe.load(recipe, partial=True)
    return base.with_keys(keys).with_settings(*settings)
