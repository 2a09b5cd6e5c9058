"""Which column of the data a model means that takes pictures, texts or sounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

_DIMENSIONS = {"image": 4, "audio": 2}


def column_of(columns: Iterable[str], kind: str) -> str | None:
    """The column called `kind` (image, text, audio), else the only one of that kind; None where that is not clear.

    `columns` may be names, names with descriptions (`image, size 28`), or a batch, whose values tell.
    """
    if kind in columns:
        return kind
    told: Mapping[str, Any] = columns if isinstance(columns, Mapping) else {}
    found = [name for name, value in told.items() if _is(value, kind)]
    return found[0] if len(found) == 1 else None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, str):
        return value.partition(",")[0].strip() == kind
    if kind == "text":
        return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == _DIMENSIONS[kind]


def picture_view(
    columns: Iterable[str],
    parameter: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: Sequence[int] | None,
) -> dict[str, Any] | None:
    """A view of the column of pictures, brought to the size and standardised as the model was trained; None: no such column."""
    column = column_of(columns, "image")
    if column is None:
        return None
    view: dict[str, Any] = {"named": {parameter: column}} if parameter else {"keys": [column]}
    if mean and std:
        prepared: dict[str, Any] = {"use": "standardise", "key": column, "mean": list(mean), "std": list(std)}
        view["transforms"] = [prepared | ({"size": list(size)} if size else {})]
    return view


def last_linear(model: nn.Module, width: int | None = None) -> str | None:
    """The path of the last linear layer (that answers for `width` classes), which is where classifiers end."""
    found = [
        path
        for path, module in model.named_modules()
        if path and isinstance(module, nn.Linear) and (width is None or module.out_features == width)
    ]
    return found[-1] if found else None
