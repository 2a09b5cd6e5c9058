"""Asking on many workers with Ray Data: they ask, this process writes, so they need no common folder for the answers."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch

from limbeck.caching import form
from limbeck.caching.asking import Asker
from limbeck.caching.encoding import asked
from limbeck.caching.writer import Folder, Writer, to_bytes
from limbeck.engine.processes import World
from limbeck.engine.trainer import Observer
from limbeck.errors import RecipeError
from limbeck.method import Progress
from limbeck.recipe import Recipe
from limbeck.teachers.stored import fingerprints


def ask(place: Folder, recipe: Recipe, missing: list[int], address: str, observer: Observer) -> None:
    """Have Ray's workers ask for the missing shards, and write each as it comes.

    A worker that dies is started again with the shards that it had not given back (Ray Data restarts its actors without
    end), and a shard's bytes do not depend on who asks; so nothing is lost and nothing is another.

    Raises:
        RecipeError: Ray is not installed or not reachable, or what a worker could not ask.
    """
    ray = _ray()
    local = re.fullmatch(r"local(?::(\d+))?", address)
    if place.header["precision"] != "fp32" and not torch.cuda.is_available():
        observer.say("the workers ask in the precision that this process found; give them devices like its own")
    started = not ray.is_initialized()
    if started:
        _start(ray, None if local else address, int(local[1]) if local and local[1] else None)
    try:
        found = ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        workers = max(1, min(gpus or int(found.get("CPU", 1)), len(missing)))
        observer.say(f"{workers} workers of Ray ask for {len(missing)} shards")
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        shards = ray.data.from_items([{"shard": n} for n in missing], override_num_blocks=len(missing))
        answers = shards.map_batches(
            _Worker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if gpus else None,
            num_cpus=None if gpus else 1,
            fn_constructor_args=(recipe, place.header),
        )
        observer.stage("cache", len(missing), 0)
        with Writer(place.path) as writer:
            for done, row in enumerate(answers.iter_rows()):
                writer.add_bytes(place.shards[int(row["shard"])], row["content"])
                observer.step(Progress(done, len(missing)), math.nan, math.nan)
    except ray.exceptions.RayTaskError as error:
        raise _sentence(error) from error
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """One worker: the teacher and the data, built anew from the recipe, and asked shard by shard."""

    def __init__(self, recipe: Recipe, header: dict[str, Any]):
        world = World.here()
        data = recipe.build_data()
        teacher = asked(recipe, data, world)
        assert teacher is not None
        for member in teacher.members.values():
            member.look_at(data.columns)
            member.model.to(world.device).eval()
        for name, path in header["teacher"]["taps"].items():
            teacher.tap(name, path)
        found = {"teacher": fingerprints(teacher), "data": data.fingerprint}
        for what, known in (("teacher", header["teacher"]["fingerprint"]), ("data", header["data"]["fingerprint"])):
            if found[what] != known:
                raise RecipeError(
                    f"a worker found another {what} than this process (fingerprint {found[what]}, here {known}). All machines of the cluster need the same files "
                    "at the same paths."
                )
        self.shards = list(form.shards(header))
        self.asker = Asker(teacher, data, header, world.device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The bytes of these shards."""
        wanted = [self.shards[int(number)] for number in batch["shard"]]
        asked = [(shard.number, to_bytes(tensors)) for shard, tensors in self.asker.ask(wanted)]
        return {"shard": [number for number, _ in asked], "content": [content for _, content in asked]}


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise RecipeError("--ray needs Ray: pip install 'limbeck[cluster]'") from error
    return ray


def _start(ray: Any, address: str | None, workers: int | None) -> None:
    """Join a cluster, or start one on this machine, whose workers see what this process sees."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    seen = [path or str(Path.cwd()) for path in sys.path]
    told = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(seen)), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": told}}
    own = {"num_cpus": workers, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(**own, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RecipeError(
            f"--ray {address or 'local'}: no Ray could be reached or started there ({error}). Start one: ray start --head, or give --ray local"
        ) from error


def _sentence(error: Exception) -> Exception:
    """The sentence that a worker raised, or what it said otherwise."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RecipeError):
            return RecipeError(str(getattr(cause, "cause", cause)))
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
