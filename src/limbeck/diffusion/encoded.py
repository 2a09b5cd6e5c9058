"""Data that were encoded once: who encodes them, and whether a cache of it is of these encoders, views and data.

A generator that lives among latents is shown the codes of an autoencoder and of text encoders that never learn; `limbeck
cache` stores these columns, and `DiffusionMethod.shown` reads them in place of encoding the same rows in every epoch.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.actors import Actor
from limbeck.errors import RecipeError
from limbeck.sources import fingerprint

KIND = "encoded"


def encoders(*actors: Actor) -> nn.ModuleDict:
    """Everything that encodes for these networks, each once."""
    found: dict[str, nn.Module] = {}
    for actor in actors:
        for name, module in actor.model.encoders().items():  # type: ignore[operator]
            if all(module is not known for known in found.values()):
                found[f"{actor.whose}_{name}"] = module
    return nn.ModuleDict(found)


def told(*actors: Actor) -> dict[str, Any]:
    """What a cache says of those who are shown its columns: their views, and the fingerprint of the encoders."""
    views = {actor.whose: actor.view.spec() for actor in actors if actor.view is not None}
    return {"kind": KIND, "views": views, "encoders": fingerprint(encoders(*actors))}


def refuse_others(stored: Any, *actors: Actor) -> None:
    """Refuse a cache of other encoders, or of data that were seen otherwise.

    Raises:
        RecipeError: what differs.
    """
    there, here = stored.header["shown"], told(*actors)
    for whose, view in here["views"].items():
        if there["views"].get(whose) != view:
            raise RecipeError(
                f"{stored.folder} holds data as the {whose} saw them through {there['views'].get(whose)}; here it is {view}. "
                "Take that view, or encode again: limbeck cache RECIPE --out ANOTHER"
            )
    if there["encoders"] != here["encoders"]:
        raise RecipeError(
            f"{stored.folder} was encoded by other encoders (fingerprint {there['encoders']}, here {here['encoders']}). "
            "Take the networks that came with those, or encode again: limbeck cache RECIPE --out ANOTHER"
        )


def opened(folder: str, data: Any) -> Any:
    """The cache in a folder, for these data.

    Raises:
        RecipeError: there is none, it holds a teacher's answers, or it is of other data.
    """
    from limbeck.teachers.stored import Stored

    stored = Stored(folder)
    if stored.header.get("shown", {}).get("kind") != KIND:
        raise RecipeError(f"{folder} holds what a teacher said, not encoded data: teacher={folder}")
    stored.check_data(data)
    return stored
