"""What libraries of models say of their own: how a folder is read, where one listens, what the model is shown.

One file per family. `FAMILIES` goes by the module that a model's class comes from, `FOLDERS` by the file that tells a
folder apart; a family's file has any of `settle(source)`, `read(place, whose, args)` and `keep(model, folder, origin)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from limbeck.sources import Source

_HERE = "limbeck.models.adapters"
FOLDERS = {  # in this order
    "model_index.json": "of_diffusers",
    "modules.json": "of_sentence_transformers",
    "config.json": "of_transformers",
}
FAMILIES = {
    "transformers": "of_transformers",
    "timm": "of_timm",
    "torchvision": "of_torchvision",
    "open_clip": "of_open_clip",
}


def folder_of(path: Path) -> str | None:
    """The family whose folder this is."""
    found = next((family for file, family in FOLDERS.items() if (path / file).exists()), None)
    if found == "of_transformers" and "_diffusers_version" in (path / "config.json").read_text():
        return "of_diffusers"  # a network of a pipeline by itself
    return found


def family_of_name(name: str) -> str:
    """The family of a hub name: a pipeline has an index of its parts. Without a network, what lies in the local cache tells."""
    try:
        import huggingface_hub as hub
    except ModuleNotFoundError:
        return "of_transformers"
    if isinstance(hub.try_to_load_from_cache(name, "model_index.json"), str):
        return "of_diffusers"
    if isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
        return "of_transformers"
    try:
        return "of_diffusers" if hub.file_exists(name, "model_index.json") else "of_transformers"
    except (OSError, ValueError, RuntimeError):  # no network, no such name: the reader says so
        return "of_transformers"


def read(place: str | Path, whose: str, args: Mapping[str, Any], family: str | None = None) -> Source:
    """A model out of its folder (or by its hub name), with what its own files say of it.

    Raises:
        RecipeError: the library is missing, or cannot read the folder.
    """
    family = family or family_of_name(str(place))
    source: Source = importlib.import_module(f"{_HERE}.{family}").read(place, whose, dict(args))
    settle(source)
    return source


def rebuilt(folder: Path, facts: Mapping[str, Any], whose: str) -> Source | None:
    """The network of a student folder that has its library's configuration, weights as constructed; None for any other."""
    if any((folder / "pipeline" / name).exists() for name in ("model_index.json", "config.json")):
        return read(folder / "pipeline", whose, facts.get("args") or {}, "of_diffusers")
    if not (folder / "config.json").exists():
        return None
    from limbeck.models.adapters import of_transformers
    from limbeck.sources import Source

    spec = {"model": facts["model"], "args": facts.get("args") or {}} if facts.get("model") else None
    source = Source(of_transformers.rebuild(folder, whose), spec, None)
    settle(source)
    return source


def settle(source: Source) -> None:
    """Fill in what nobody gave: taps, class names and a view, for a model whose library is known or that says its own view."""
    if source.view_for is None and callable(getattr(source.model, "view_for", None)):
        source.view_for = source.model.view_for  # type: ignore[assignment]
    family = family_of(source.model)
    module = None if family is None else importlib.import_module(f"{_HERE}.{family}")
    if hasattr(module, "settle"):
        module.settle(source)  # type: ignore[union-attr]


def keep(model: nn.Module, folder: Path, origin: str | Path | None) -> None:
    """Write beside a student's weights what its library needs to build it again (a configuration, a tokenizer)."""
    family = family_of(model)
    module = None if family is None else importlib.import_module(f"{_HERE}.{family}")
    if hasattr(module, "keep"):
        place = None if origin is None else Path(origin)
        module.keep(model, folder, place.parent if place is not None and place.is_file() else place)  # type: ignore[union-attr]


def keep_beside(model: nn.Module, folder: Path, origin: Path | None) -> list[str]:
    """Copy the tokenizer or processor of a model's folder beside another form of it; gives the names of the files."""
    if origin is None or family_of(model) != "of_transformers":
        return []
    from limbeck.models.adapters import of_transformers

    return of_transformers.copy_beside(origin, folder)


def at_home(view: Any, folder: Path) -> Any:
    """A view as a file has it; where its tokenizer's folder is gone, it reads the files that were kept in `folder`."""
    if not isinstance(view, Mapping) or not (folder / "tokenizer_config.json").exists():
        return view

    def kept(entry: Any) -> Any:
        gone = isinstance(entry, Mapping) and entry.get("use") == "tokenise" and not Path(entry["tokenizer"]).exists()
        return {**entry, "tokenizer": str(folder)} if gone else entry

    return {**view, "transforms": [kept(entry) for entry in view.get("transforms", ())]}


def family_of(model: nn.Module) -> str | None:
    """The family that the class of a model comes from; somebody's own subclass is theirs to describe."""
    return getattr(model, "family", None) or FAMILIES.get(type(model).__module__.partition(".")[0])
