"""Tuning: for every arm the same number of trials, judged on the validation split. The test split is not there.

The space of an arm is `train.lr`, a factor of four around the given, and what its method says in a class attribute,

    tunable: ClassVar[dict[str, tuple[float, float] | list]] = {"weight": (0.05, 20.0), "mode": ["hard", "weighted"]}

(low, high): evenly on a logarithmic scale, or on a linear one where low is 0, whole numbers where both are; a list: one
of these. A method that says nothing has `weight` and `temperature` tuned where it has them. An option that is off (0, null) or a schedule stays as it
is, and a range is widened to hold what was given, which is the first trial.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import methods
from limbeck.data.tensors import Data
from limbeck.engine.trainer import Observer, Stopped
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe, teaching
from limbeck.run import distill
from limbeck.writing import write_json

if TYPE_CHECKING:
    from optuna.trial import Trial

DEFAULT: Mapping[str, Any] = {"weight": (0.05, 20.0), "temperature": (1.0, 16.0)}
AROUND = 4.0  # the learning rate: from a quarter of the given to four times as much
FILE = "trials.json"


@dataclass(frozen=True)
class Knob:
    """One key of the recipe that is tuned: `given`, and a range or a list of values."""

    key: str
    given: Any
    among: tuple[float, float] | list[Any]

    def turn(self, trial: Trial) -> Any:
        """The value of this trial; numbers with three significant digits."""
        if isinstance(self.among, list):
            return trial.suggest_categorical(self.key, self.among)
        low, high = min(self.among[0], self.given), max(self.among[1], self.given)
        if all(isinstance(end, int) for end in self.among):
            return trial.suggest_int(self.key, int(low), int(high), log=low > 0)
        value = trial.suggest_float(self.key, low, high, log=low > 0)
        return self.given if value == self.given else float(f"{value:.3g}")


def knobs(recipe: Recipe) -> list[Knob]:
    """The space of a recipe: the learning rate, and what its method or each term of its sum says."""
    found = [Knob("train.lr", recipe.train.lr, (recipe.train.lr / AROUND, recipe.train.lr * AROUND))]
    members = recipe.method if isinstance(recipe.method, list) else [recipe.method]
    for member in members:
        if not isinstance(member, Mapping) or "use" not in member:
            continue
        where = f"method.{teaching.name(dict(member))}" if len(members) > 1 else "method"
        for option, among in getattr(methods.find(member["use"]), "tunable", DEFAULT).items():
            given = member.get(option)
            number = isinstance(given, (int, float)) and not isinstance(given, bool) and given > 0
            if number or (isinstance(among, list) and given in among):
                found.append(Knob(f"{where}.{option}", given, among))
    return found


def seen(recipe: Recipe) -> Data:
    """The recipe's data without a test split.

    Raises:
        RecipeError: there is no validation split to judge by.
    """
    data = recipe.build_data()
    if "validation" not in data.splits:
        raise RecipeError(
            f"tuning is judged on the validation split, and {data.source} has none (it has {', '.join(data.splits)})."
        )
    kept = {name: split for name, split in data.splits.items() if name in ("train", "validation")}
    return Data(kept, data.columns, data.labels, data.fingerprint, data.source)


def blind(recipe: Recipe, data: Data) -> Recipe:
    """The recipe on these data, with nothing that only the final run needs."""
    left_out = {"control": "none", "evaluate": ["quality"], "require": [], "export": [], "track": []}
    return recipe.with_keys({"data": data} | left_out)


def tune(
    recipe: Recipe, trials: int, folder: Path, observer: Observer, command: str | None = None
) -> tuple[dict[str, Any], float]:
    """The settings with the best metric on the validation split; the given ones, where nothing was better; and the seconds it took.

    Every trial is written down when it ends, so that a search that was stopped goes on: the sampler draws the same again.

    Args:
        recipe: as `blind` gives it.
        trials: how many, those that fail included.

    Raises:
        RecipeError: Optuna is missing, or every trial failed.
        Stopped: interrupted; the same call goes on.
    """
    optuna = the_optuna()
    space = knobs(recipe)
    up = recipe.build_task(recipe.build_data()).higher_is_better
    study = optuna.create_study(
        direction="maximize" if up else "minimize", sampler=optuna.samplers.TPESampler(seed=recipe.seed)
    )
    study.enqueue_trial({knob.key: knob.given for knob in space})
    folder.mkdir(parents=True, exist_ok=True)
    before = json.loads((folder / FILE).read_text()) if (folder / FILE).exists() else []
    done: list[dict[str, Any]] = []
    for number in range(trials):
        trial = study.ask()
        settings = {knob.key: knob.turn(trial) for knob in space}
        again = number < len(before) and before[number]["settings"] == settings
        done.append(before[number] if again else _try(recipe, settings, folder / f"trial-{number}", observer, command))
        write_json(folder / FILE, done + before[len(done) :] if again else done)
        value = done[-1]["value"]
        study.tell(trial, value) if value is not None else study.tell(trial, state=optuna.trial.TrialState.FAIL)
    good = [one for one in done if one["value"] is not None]
    if not good:
        shutil.rmtree(folder)  # so that the same command tries again
        raise RecipeError(f"all {trials} tuning trials failed; the first: {done[0]['reason']}")
    best = (max if up else min)(good, key=lambda one: one["value"])  # of equals the first
    return best["settings"], sum(one.get("seconds", 0.0) for one in done)


def _try(
    recipe: Recipe, settings: Mapping[str, Any], folder: Path, observer: Observer, command: str | None
) -> dict[str, Any]:
    """One training, of which only the figures are kept."""
    told: dict[str, Any] = {"settings": dict(settings), "value": None, "reason": None}
    try:
        result = distill(changed(recipe, settings), out=folder, observer=observer, command=command).result
    except Stopped as stopped:
        if stopped.reason != "limit":
            raise
        told["reason"] = str(stopped)
    except Exception as error:  # a setting that does not work is a finding, too
        told["reason"] = " ".join(f"{type(error).__name__}: {error}".split())
    else:
        value = result["student"]["metric"]
        told |= {"value": value, "split": result["split"], **{key: result["cost"][key] for key in ("seconds", "steps")}}
        told["reason"] = "the metric is not defined" if value is None else None
    shutil.rmtree(folder, ignore_errors=True)
    return told


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with tuned settings."""
    return recipe.with_settings(*(f"{key}={json.dumps(value)}" for key, value in settings.items()))


def the_optuna() -> Any:
    """The library.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            "--tune searches with Optuna, which is not installed: pip install 'limbeck[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
