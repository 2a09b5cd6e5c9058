"""What one model is shown of a batch: which columns, in which places, and what is done to them before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from limbeck.choices import plain
from limbeck.errors import RecipeError, nearest
from limbeck.randomness import fold
from limbeck.transforms import (
    Apply,
    ModalityDropout,
    Noise,
    RandomMask,
    RandomTransform,
    Subset,
    Transform,
    to_transform,
)

__all__ = ["Apply", "ModalityDropout", "Noise", "RandomMask", "RandomTransform", "Subset", "Transform", "View"]

_OURS = ("id", "view_seed", "ghost")  # columns of a batch that the engine keeps there for itself
_EVALUATION = 0x5EED  # the salt of seeds made of ids alone, so that they are not those of any training step
_PARTS = ("keys", "named", "transforms", "privileged")


class View:
    """Which columns of a batch a model is called with: `view(batch) -> (args, kwargs)` for `model(*args, **kwargs)`.

    Args:
        keys: columns that the model takes by position.
        transforms: what is done to the columns first, in this order (`limbeck.transforms`); each as an object, a name,
            or `{use: noise, std: 0.1}`. They see all columns of this view, by their names in the data.
        privileged: this model sees what the student will not have (labels, the future): for training only.
        named: columns that the model takes by keyword, `pixel_values="image"`.

    Raises:
        RecipeError: a view of nothing, or a transform of columns that the view does not have.
    """

    def __init__(
        self, *keys: str, transforms: Sequence[Any] | Any = (), privileged: bool = False, **named: str
    ) -> None:
        listed = transforms if isinstance(transforms, (list, tuple)) else [transforms]
        self.keys = keys
        self.named = dict(named)
        self.transforms = tuple(to_transform(t) for t in listed)
        self.privileged = privileged
        shown = tuple(dict.fromkeys((*self.keys, *self.named.values())))
        for key in shown:
            if not isinstance(key, str):
                raise RecipeError(f"a view names columns, and {key!r} is a {type(key).__name__}.")
        made = {name for transform in self.transforms for name in transform.adds()}
        self.columns: tuple[str, ...] = tuple(key for key in shown if key not in made)
        if not self.columns:
            raise RecipeError("a view shows at least one column: View('image'), or view: image.")
        for transform in self.transforms:
            for key in transform.names():
                if key not in self.columns:
                    use = transform.spec()["use"]
                    raise RecipeError(
                        f"transform '{use}' of a view names '{key}', which the view lacks. {nearest(key, self.columns)}"
                    )

    @classmethod
    def of(cls, x: View | str | Sequence[str] | Mapping[str, Any]) -> View:
        """A view out of a view, one column, a list of columns, or `{keys, named, transforms, privileged}`.

        Raises:
            RecipeError: none of these, or an unknown key (the nearest is named).
        """
        if isinstance(x, View):
            return x
        if isinstance(x, str):
            return cls(x)
        if isinstance(x, (list, tuple)):
            return cls(*x)
        if not isinstance(x, Mapping):
            raise RecipeError(f"view {x!r}: needed is a column, a list of columns, or {{{', '.join(_PARTS)}}}.")
        for key in x:
            if key not in _PARTS:
                raise RecipeError(f"unknown key '{key}' of a view. {nearest(str(key), _PARTS)}")
        keys, named = x.get("keys", ()), x.get("named", {})
        if not isinstance(named, Mapping):
            raise RecipeError(f"named: {named!r} of a view: needed is {{parameter of forward: column}}.")
        taken = [name for name in ("transforms", "privileged") if name in named]
        if taken:
            raise RecipeError(
                f"a view cannot show a column under the name '{taken[0]}': rename that parameter of forward."
            )
        return cls(
            *([keys] if isinstance(keys, str) else keys),
            transforms=x.get("transforms", ()),
            privileged=bool(x.get("privileged", False)),
            **named,
        )

    def spec(self) -> str | list[str] | dict[str, Any]:
        """How a recipe spells it: a bare string for one column, a list for several, a mapping for more."""
        if not (self.named or self.transforms or self.privileged):
            return self.keys[0] if len(self.keys) == 1 else list(self.keys)
        parts = {"keys": self.keys, "named": self.named, "transforms": self.transforms, "privileged": self.privileged}
        return {part: plain(value) for part, value in parts.items() if value}

    def __call__(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for the model. `view_seed` in the batch (training) makes random transforms act.

        Raises:
            RecipeError: the batch lacks a column; the message lists those it has.
        """
        self.check(batch)
        inputs = {key: batch[key] for key in self.columns}
        for transform in self.transforms:
            seeds = batch.get("view_seed")
            if seeds is None and transform.always:
                if "id" not in batch:
                    raise RecipeError(
                        "a transform that acts in evaluation too draws by the samples' ids, and the batch has no 'id'."
                    )
                seeds = fold(batch["id"], _EVALUATION)
            inputs = transform(inputs, seeds)
        return tuple(inputs[key] for key in self.keys), {name: inputs[key] for name, key in self.named.items()}

    def check(self, available: Iterable[str], whose: str = "", source: str = "") -> None:
        """Refuse columns that are not `available`.

        Args:
            available: the columns there are.
            whose: whose view it is, `teacher` or `student`, for the message.
            source: what they are the columns of, such as `manifest.csv`, for the message.

        Raises:
            RecipeError: with the columns there are, and how to write the view with the most similar ones.
        """
        there = [key for key in available if key not in _OURS]
        missing = [key for key in self.columns if key not in there and key != "id"]  # every batch has its samples' ids
        if not missing:
            return
        listed = ", ".join(f"'{key}'" for key in missing)
        raise RecipeError(
            f"view {listed}{f' of the {whose}' if whose else ''}: "
            f"the batch has {', '.join(there) or 'no columns'}{f' (columns of {source})' if source else ''}. "
            + self._advice(missing, there, f"{whose}.view" if whose else "view")
        )

    def _advice(self, missing: list[str], there: list[str], view: str) -> str:
        renamed: dict[str, str] = {}
        for key in missing:
            free = [other for other in there if other not in self.columns and other not in renamed.values()]
            likeness = {other: SequenceMatcher(None, key.lower(), other.lower()).ratio() for other in free}
            best = max(likeness, key=likeness.__getitem__, default=None)
            if best is None or likeness[best] < 0.35:
                return f"Name columns that are there: {view}=[...]"
            renamed[key] = best
        keys = [renamed.get(key, key) for key in self.keys]
        written = keys[0] if len(keys) == 1 else f"[{', '.join(keys)}]"
        settings = [f"{view}{'.keys' * isinstance(self.spec(), dict)}={written}"] if {*self.keys} & {*missing} else []
        settings += [f"{view}.named.{name}={renamed[key]}" for name, key in self.named.items() if key in renamed]
        return f"Rename {'it' if len(missing) == 1 else 'them'}: {' '.join(settings)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash((self.keys, tuple(self.named.items()), self.privileged))

    def __repr__(self) -> str:
        shown = [repr(key) for key in self.keys] + [f"{name}={key!r}" for name, key in self.named.items()]
        shown += [f"transforms={list(self.transforms)!r}"] if self.transforms else []
        return f"View({', '.join(shown + ['privileged=True'] * self.privileged)})"

    def _all(self) -> tuple[Any, ...]:
        return self.keys, self.named, self.transforms, self.privileged
