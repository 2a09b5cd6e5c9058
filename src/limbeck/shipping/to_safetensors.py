"""Safetensors: the student folder as it ships, weights with what builds the network again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError
from limbeck.shipping.package import Package
from limbeck.sources import WEIGHTS_FILE

NAME = "safetensors"
QUANTIZES = ("none",)
NEEDS_NETWORK = False


def write(package: Package) -> dict[str, Any]:
    """Copy the student folder; needs neither the network's code nor a recipe that can be read."""
    return copy(package.shipped, package.folder)


def copy(shipped: Path | None, folder: Path) -> dict[str, Any]:
    """Copy what training left.

    Raises:
        RecipeError: there is no student folder.
    """
    if shipped is None or not shipped.is_dir():
        raise RecipeError(f"there is no student folder to copy{f' at {shipped}' if shipped else ''}.")
    for file in shipped.iterdir():
        target = folder / file.name
        shutil.copytree(file, target) if file.is_dir() else shutil.copyfile(file, target)
    return {"file": WEIGHTS_FILE}
