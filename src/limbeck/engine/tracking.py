"""Accelerate's trackers by name, beside the JSONL file that is always written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.engine.log import Tracker
from limbeck.errors import RecipeError, nearest


def build(names: list[str], folder: Path, config: dict[str, Any]) -> tuple[Tracker, ...]:
    """Start the trackers that `names` lists (tensorboard, wandb, mlflow, ...), for one run.

    Raises:
        RecipeError: an unknown tracker, or one whose package is missing.
    """
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # trackers ask it who is the main process
    made = []
    for name in names:
        cls = LOGGER_TYPE_TO_CLASS.get(name)
        if cls is None:
            raise RecipeError(f"unknown tracker '{name}'. {nearest(name, LOGGER_TYPE_TO_CLASS)}")
        try:
            tracker = cls(folder.name, logging_dir=str(folder)) if cls.requires_logging_directory else cls(folder.name)
            if hasattr(tracker, "start"):
                tracker.start()
        except (ImportError, ModuleNotFoundError, NameError) as error:
            raise RecipeError(f"track: {name} is not installed. pip install {name}") from error
        tracker.store_init_configuration(_flat(config))
        made.append(tracker)
    return tuple(made)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    found: dict[str, str | int | float | bool] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _flat(item, f"{prefix}{key}.")
        else:
            found[prefix + key] = item if isinstance(item, (str, int, float, bool)) else str(item)
    return found
