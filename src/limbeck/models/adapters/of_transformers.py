"""transformers: any model with any Auto head, from a local folder or by its hub name; new ones by `build`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import RecipeError, nearest
from limbeck.models.adapters import causal
from limbeck.models.adapters.columns import column_of, last_linear, picture_view
from limbeck.models.blocks import with_layers
from limbeck.sources import Source, tokenizer_beside

# What tokenizers and processors are read from; anything else in a folder is somebody's own.
BESIDE = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model"),
    *("sentencepiece*.model", "preprocessor_config.json", "processor_config.json", "image_processor*.json"),
    *("feature_extractor*.json", "video_preprocessor_config.json", "chat_template*", "generation_config.json"),
)
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_KINDS = {"pixel_values": "image", "input_ids": "text", "input_values": "audio"}


def read(place: str | Path, whose: str, args: dict[str, Any]) -> Source:
    """A pretrained model, with the head it was saved with, or with `head`; other arguments change its configuration.

    Args:
        args: `head`: as in AutoModelFor..., such as `image-classification`; any key of the configuration, such as
            `num_labels` (a head of another width begins anew).

    Raises:
        RecipeError: transformers is missing, there is no such head, or the folder cannot be read.
    """
    transformers = _library(whose, place)
    changes = dict(args)
    kind = _kind(transformers, place, changes.pop("head", None), whose)
    try:
        model = kind.from_pretrained(place, ignore_mismatched_sizes="num_labels" in changes, **changes)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(place, whose, error) from error
    spec = {"model": str(place), **({"args": dict(args)} if args else {})}
    return Source(model, spec, Path(place).resolve() if Path(place).exists() else None)


def build(config: str, *, head: str | None = None, **changes: Any) -> nn.Module:
    """A new network of the same make: the configuration in a folder, with changes, and fresh weights.

    As a student: `{model: "limbeck.models.adapters.of_transformers:build", args: {config: teacher/, num_hidden_layers: 2}}`.
    """
    transformers = _library("student", config)
    kind = _kind(transformers, config, head, "student")
    number = changes.pop("num_hidden_layers", None)
    made = transformers.AutoConfig.from_pretrained(config, **changes)
    if number is not None:  # what the configuration lists layer by layer begins again where there are more layers
        made = with_layers(made, [i % made.num_hidden_layers for i in range(number)])
    return kind.from_config(made) if kind.__name__.startswith("Auto") else kind(made)


def rebuild(folder: Path, whose: str) -> nn.Module:
    """The network of a folder, by its configuration and the class it names, with fresh weights."""
    transformers = _library(whose, folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    return _kind(transformers, folder, None, whose)(config)


def settle(source: Source) -> None:
    """Class names that are more than LABEL_0; taps `embedding` and `hidden`; a view made as the model's processor would."""
    model: Any = source.model
    named = list((getattr(model.config, "id2label", None) or {}).items())
    names = [str(name) for _, name in sorted(named, key=lambda entry: int(entry[0]))]
    if (
        source.labels is None
        and "Classification" in type(model).__name__
        and not all(map(_PLACEHOLDER.fullmatch, names))
    ):
        source.labels = names
    language = causal.find(model) if source.head is None else None
    if language is not None:
        source.head, places = language
        source.taps = {**places, **source.taps}
    elif not source.taps:
        source.taps = _taps(model)
    origin = source.spec["model"] if source.spec and Path(source.spec["model"]).is_dir() else model.config._name_or_path
    source.tokenizer = source.tokenizer or tokenizer_beside(str(origin))
    source.view_for = source.view_for or _view(model, str(origin))


def keep(model: Any, folder: Path, origin: Path | None) -> None:
    """The configuration, and the tokenizer or processor of the folder that the model came from."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    copy_beside(origin or Path(model.config._name_or_path or "?"), folder)  # made of a configuration, or shrunk


def copy_beside(origin: Path | None, folder: Path) -> list[str]:
    """Copy tokenizer and processor files; gives their names."""
    copied: list[str] = []
    if origin is None or not origin.is_dir():
        return copied
    for pattern in BESIDE:
        for file in sorted(origin.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
                copied.append(file.name)
    return copied


def _library(whose: str, place: str | Path) -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{whose}.model {place} is a transformers model: pip install 'limbeck[text]' to read it."
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _kind(transformers: Any, place: str | Path, head: str | None, whose: str) -> Any:
    """The class to read with: that of the head, that which the configuration names, or the model without a head."""
    if head is not None:
        name = "AutoModelFor" + "".join(
            word.upper() if word in ("lm", "ctc") else word.title() for word in head.split("-")
        )
        if not hasattr(transformers, name):
            known = [n.removeprefix("AutoModelFor") for n in dir(transformers) if n.startswith("AutoModelFor")]
            words = [re.sub(r"(?<=[a-z])(?=[A-Z])", "-", n).lower() for n in known]
            raise RecipeError(f"{whose}.args.head '{head}': transformers has no {name}. {nearest(head, words)}")
        return getattr(transformers, name)
    try:
        config = transformers.AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise _unreadable(place, whose, error) from error
    names = getattr(config, "architectures", None) or []
    return (getattr(transformers, names[0], None) if names else None) or transformers.AutoModel


def _taps(model: Any) -> dict[str, str]:
    """`embedding`: what the last layer of the head reads; `hidden`: the tokens or maps of the model below the head."""
    width = getattr(model.config, "num_labels", None) if "Classification" in type(model).__name__ else None
    head = last_linear(model, width) if width else None
    body = getattr(model, "base_model", None)
    if head is None:
        return {}
    taps = {"embedding": f"{head}:input"}
    if body is not None and body is not model:
        taps["hidden"] = f"{model.base_model_prefix}.last_hidden_state"
    return taps


def _view(model: Any, origin: str) -> Callable[[Iterable[str]], Any]:
    """Columns that have the names of the model's inputs; else pictures, texts or sounds prepared as its files say."""
    import inspect

    accepted = [name for name in inspect.signature(model.forward).parameters if name not in ("label", "labels")]
    main = model.main_input_name

    def view_for(columns: Iterable[str]) -> Any:
        own = {name: name for name in accepted if name in columns}
        if "segment" in columns and {"input_ids", "attention_mask"} <= own.keys():
            blocks = {"use": "documents", "key": "segment", "added": model.config._attn_implementation != "sdpa"}
            return {"named": {**own, "attention_mask": "segment"}, "transforms": [blocks]}
        kind = _KINDS.get(main)
        if main in own or kind is None:
            return {"named": own} if main in own else None
        if kind == "image":
            return picture_view(columns, main, *_processor(Path(origin), model.config))
        column = column_of(columns, kind)
        if column is None or (kind == "text" and not _tokenizer(Path(origin))):
            return None
        if kind == "audio":
            return {"named": {main: column}}
        mask = f"{column}_mask"
        longest = getattr(model.config, "max_position_embeddings", None)
        tokens = {"use": "tokenise", "key": column, "tokenizer": origin, "mask": mask, "longest": longest}
        return {"named": {main: column, "attention_mask": mask}, "transforms": [tokens]}

    return view_for


def _tokenizer(origin: Path) -> bool:
    return any((origin / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))


def _processor(origin: Path, config: Any) -> tuple[Any, Any, Any]:
    """Mean, standard deviation and size that the folder's image processor uses; None where it does not say."""
    file = next(
        (origin / n for n in ("preprocessor_config.json", "processor_config.json") if (origin / n).exists()), None
    )
    if file is None:
        return None, None, None
    facts = json.loads(file.read_text())
    facts = facts.get("image_processor", facts)
    size = (facts.get("crop_size") if facts.get("do_center_crop") else facts.get("size")) or {}
    if isinstance(size, int):
        size = {"height": size, "width": size}
    side = size.get("shortest_edge", getattr(config, "image_size", None))
    high, wide = size.get("height", side), size.get("width", side)
    shape = [high, wide] if isinstance(high, int) and isinstance(wide, int) and facts.get("do_resize", True) else None
    if not facts.get("do_normalize", True):
        channels = getattr(config, "num_channels", 3)
        return [0.0] * channels, [1.0] * channels, shape
    return facts.get("image_mean"), facts.get("image_std"), shape


def _unreadable(place: str | Path, whose: str, error: Exception) -> RecipeError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    where = "" if Path(place).exists() else f"no such path here ({Path.cwd()}), and as a hub name "
    return RecipeError(f"{whose}.model '{place}': {where}transformers cannot read it: {first}")
