"""Students out of teachers: fewer layers, heads, neurons and channels, with the weights of what stays.

`shrink` takes any decoder or encoder of `transformers` that is one list of blocks, and gives a network of the same class
with a changed configuration: `save_pretrained` and `from_pretrained` know nothing of Limbeck. As a student of a recipe:

    student: {model: PATH, layers: 6}                                                          # layers only
    student: {model: "limbeck.models.shrink:build", args: {of: PATH, layers: 6, neurons: 512}} # all that `shrink` takes

What is left out: encoders with decoders, networks of two towers, blocks that share their weights, experts.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import RecipeError, nearest
from limbeck.models.blocks import Block, Heads, blocks, heads_of, of_config, sizes, stack, with_layers
from limbeck.models.importance import Importance, by_use, by_weights
from limbeck.sources import load_model

__all__ = ["build", "chosen_layers", "shrink"]

Choice = Literal["spread", "alternate", "last-of-each", "first", "last", "importance"]
Axes = dict[str, dict[int, Tensor]]  # of a parameter, by dimension: what stays
Calibration = Iterable[Mapping[str, Tensor]]
_NEURONS = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff", "ffn_hidden_size")


def shrink(
    model: Any,
    *,
    layers: int | Sequence[int] | None = None,
    choose: Choice = "spread",
    heads: int | None = None,
    kv_heads: int | None = None,
    neurons: int | None = None,
    width: int | None = None,
    calibration: Calibration | None = None,
) -> Any:
    """A smaller network of the same class that begins with the model's own weights; the model is left as it is.

    Args:
        model: a network of `transformers`.
        layers: how many blocks stay, or which (numbers from 0, ascending). Nothing else changes in what stays.
        choose: which ones, where a number is given: see `chosen_layers`.
        heads: how many query heads stay in every block, those that write the most into the stream. Networks in which
            the heads' widths make up the hidden width (BERT, GPT-2) lose both together: give `width`.
        kv_heads: how many groups of keys and values stay; by default the group size does where it divides `heads`, else
            all groups do. Whole groups go first, then heads within each.
        neurons: how many neurons stay in every block, the most important by what they write.
        width: how many channels of the stream stay, the same everywhere. A norm then sees fewer channels and a network
            of another function begins, close to the old one where what goes was small.
        calibration: batches of the model's own inputs (`input_ids`, `attention_mask`), by which importance is measured;
            without them it is that of the weights.

    Returns:
        The network, in the dtype, on the device and in the mode of `model`. Tied weights stay tied.

    Raises:
        RecipeError: not such a network, numbers that are not there, or sizes that its configuration cannot hold.
    """
    if not hasattr(model, "config") or not hasattr(model, "base_model"):
        raise RecipeError(f"shrinking is for networks of transformers, and {type(model).__name__} is none.")
    found = blocks(model)
    number = getattr(model.config, "num_hidden_layers", None)
    if number != len(found):
        raise RecipeError(
            f"{type(model).__name__} has {len(found)} blocks of weights for {number} layers: they are shared, and none can be taken out."
        )
    layout = heads_of(model, found) if {heads, kv_heads, width} != {None} else None
    measured = None if calibration is None else by_use(model, found, layout, calibration)
    kept = chosen_layers(len(found), layers, choose, None if measured is None else measured.layers)
    _by_number(model.config, kept)
    config = with_layers(model.config, kept)
    axes: Axes = {}
    channels = None
    importance = measured or by_weights(model, found, layout)
    if layout is not None:
        _fewer_heads(model, config, found, layout, importance, (heads, kv_heads, width), axes)
    if neurons is not None or width is not None:
        _fewer_neurons(model, config, found, importance, neurons, axes)
    if width is not None:
        _fewer_channels(config, len(importance.width), width)
        channels = _best(importance.width, width)
    made = of_config(model, config)
    _copy(model, made, kept, axes, channels, found)
    if getattr(model, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(model.device).train(model.training)


def build(
    of: str,
    *,
    head: str | None = None,
    texts: str | Sequence[str] | None = None,
    batch_size: int = 16,
    longest: int = 128,
    **sizes: Any,
) -> nn.Module:
    """`shrink` of the model in a folder (or by its hub name), as a recipe calls it.

    Args:
        of: a transformers folder, a run folder, or a hub name.
        head: as in AutoModelFor..., for a student with another head than it was saved with (which begins anew).
        texts: a file of one text per line, or the texts themselves, by which importance is measured.
        batch_size: texts per batch of that.
        longest: tokens to which a text is cut there.
        sizes: `layers`, `choose`, `heads`, `kv_heads`, `neurons`, `width`.

    Raises:
        RecipeError: as `shrink`, or there is no tokenizer beside the model.
    """
    known = ("layers", "choose", "heads", "kv_heads", "neurons", "width")
    for key in sizes:
        if key not in known:
            raise RecipeError(f"unknown key 'student.args.{key}'. {nearest(key, [*known, 'of', 'head', 'texts'])}")
    source = load_model(of, args={"head": head} if head else None, whose="student")
    folder = Path(of) / "student" if (Path(of) / "student").is_dir() else Path(of)
    calibration = None if texts is None else _tokenised(_lines(texts), str(folder), batch_size, longest)
    made = shrink(source.model, calibration=calibration, **sizes)
    made.config._name_or_path = str(folder)  # where its tokenizer is
    return made


def chosen_layers(
    number: int,
    layers: int | Sequence[int] | None,
    choose: str = "spread",
    importance: Float[Tensor, "layers"] | None = None,
) -> list[int]:
    """The layers that stay, of `number`, in their order.

    - `spread`: evenly, the first and the last among them: 12 to 4 are 0, 4, 7, 11.
    - `alternate`: the first of each of `layers` equal runs: 12 to 6 are 0, 2, ..., 10 (DistilBERT's every second).
    - `last-of-each`: the last of each run: 12 to 4 are 2, 5, 8, 11 (as TinyBERT pairs layers).
    - `first`, `last`: the ones next to the input or to the output.
    - `importance`: those that change their input the most: 1 - cos(input, output), mean over tokens (Men et al. 2024,
      "ShortGPT", arXiv 2403.03853, equation 1: block influence); needs calibration.

    Raises:
        RecipeError: numbers that are not there, twice, or not in order; importance that was not measured.
    """
    if layers is None:
        return list(range(number))
    if not isinstance(layers, int):
        given = list(layers)
        if not given or given != sorted(set(given)) or not 0 <= given[0] <= given[-1] < number:
            raise RecipeError(f"layers {given}: needed are some of 0 to {number - 1}, ascending, each once.")
        return given
    if isinstance(layers, bool) or not 1 <= layers <= number:
        raise RecipeError(f"layers={layers}: the network has {number} layers; needed is 1 to {number} of them.")
    if choose == "spread":
        return [round(i * (number - 1) / max(layers - 1, 1)) for i in range(layers)]
    if choose == "alternate":
        return [i * number // layers for i in range(layers)]
    if choose == "last-of-each":
        return [(i + 1) * number // layers - 1 for i in range(layers)]
    if choose == "first":
        return list(range(layers))
    if choose == "last":
        return list(range(number - layers, number))
    if choose != "importance":
        raise RecipeError(f"layers cannot be chosen by '{choose}'. {nearest(choose, get_args(Choice))}")
    if importance is None:
        raise RecipeError(
            "the importance of layers is measured on texts: give texts (a file of one per line), or calibration in Python."
        )
    return sorted(importance.argsort(descending=True, stable=True)[:layers].tolist())


def _by_number(config: Any, kept: list[int]) -> None:
    """Refuse to renumber layers where a layer computes with its own number."""
    told = [key for key, value in config.to_dict().items() if "layer_idx" in key and value is True]
    if told and kept != list(range(len(kept))):
        raise RecipeError(
            f"with {told[0]} a layer computes with its number, which would be another one: keep the first layers (choose=first)."
        )


def _fewer_heads(
    model: Any,
    config: Any,
    found: list[Block],
    layout: Heads,
    importance: Importance,
    given: tuple[int | None, int | None, int | None],
    axes: Axes,
) -> None:
    """Put the numbers of heads, groups and channels that were `given` into the configuration; which heads stay into `axes`."""
    heads, kv_heads, width = given
    name, hidden = type(model).__name__, len(importance.width)
    if width is not None and not 1 <= width <= hidden:
        raise RecipeError(f"width={width}: {name} has {hidden} channels; needed is 1 to {hidden}.")
    free = _heads_are_free(model, found, layout)
    if not free and width is not None and heads is None and layout.number == layout.groups:
        heads = width // layout.width
    number, groups = _head_counts(layout, heads, kv_heads)
    if not free and number * layout.width != (width or hidden):
        raise RecipeError(
            f"the heads of {name} make up its width ({layout.number} of {layout.width} are {hidden}): "
            f"with {number} heads give width={number * layout.width}, and a width that {layout.width} divides."
        )
    if free:
        config.head_dim = layout.width
    config.num_attention_heads = number
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = groups
    after = Heads(number, groups, layout.width, layout.layout)
    if after == layout:
        return
    for block, score in zip(found, importance.heads):
        if block.extra:
            raise RecipeError(
                f"{name}: what {block.extra[0]} does in the attention is not known, so its heads must stay."
            )
        _keep_heads(model, block, layout, after, score, axes)


def _fewer_neurons(
    model: Any, config: Any, found: list[Block], importance: Importance, neurons: int | None, axes: Axes
) -> None:
    """Write the number of neurons out, which some configurations otherwise take to be four times the width."""
    name, outof = type(model).__name__, found[0].outof
    key = next((key for key in _NEURONS if hasattr(config, key)), None)
    if outof is None or key is None:
        if neurons is not None:
            raise RecipeError(
                f"{name}: the neurons of its blocks cannot be told apart, or its configuration does not say how many there are."
            )
        return
    there = sizes(model.get_submodule(outof))[0]
    if neurons is not None and not 1 <= neurons <= there:
        raise RecipeError(f"neurons={neurons}: the blocks of {name} have {there}; needed is 1 to {there}.")
    setattr(config, key, neurons or there)
    for block, score in zip(found, importance.neurons):
        if neurons is not None:
            _keep_neurons(model, block, _best(score, neurons), axes)


def _fewer_channels(config: Any, hidden: int, width: int) -> None:
    """Every width of the configuration that is that of the stream."""
    for key in [*config.to_dict(), "hidden_size"]:
        if re.search("hidden_size$|proj_dim$|embedding_size$", key) and getattr(config, key, None) == hidden:
            setattr(config, key, width)


def _head_counts(layout: Heads, heads: int | None, kv_heads: int | None) -> tuple[int, int]:
    each = layout.number // layout.groups
    number = heads if heads is not None else kv_heads * each if kv_heads is not None else layout.number
    groups = kv_heads if kv_heads is not None else number // each if number % each == 0 else layout.groups
    if not (1 <= groups <= layout.groups and groups <= number <= groups * each and number % groups == 0):
        raise RecipeError(
            f"heads={number} in {groups} groups of keys and values: there are {layout.number} in {layout.groups} groups of {each}; "
            "needed are as many or fewer groups, as many or fewer heads in each, and the same number in all."
        )
    return number, groups


def _heads_are_free(model: Any, found: list[Block], layout: Heads) -> bool:
    """Whether the class lets heads be as wide as `head_dim` says, whatever the hidden width is."""
    config = with_layers(model.config, [0])
    config.head_dim = 2 * layout.width
    try:
        with torch.device("meta"):
            twin = of_config(model, config, body=True)
    except (ValueError, RuntimeError, TypeError):
        return False
    return sizes(twin.get_submodule(blocks(twin)[0].out))[0] == 2 * layout.number * layout.width


def _keep_heads(
    model: Any, block: Block, before: Heads, after: Heads, score: Float[Tensor, "heads"], axes: Axes
) -> None:
    """Groups by the sum of their heads' scores, then the best heads of each; all stay in their order."""
    grouped = score.view(before.groups, -1)
    groups = _best(grouped.sum(1), after.groups)
    each = before.number // before.groups
    queries = torch.cat([g * each + _best(grouped[g], after.number // after.groups) for g in groups.tolist()])
    chosen = (queries, groups, groups)
    new, old = after.rows(), [rows[which].flatten() for rows, which in zip(before.rows(), chosen)]
    if before.layout is None:
        for path, rows in zip(block.attention, old):
            _take(model, path, rows, axes, out=True)
    else:
        joined = torch.empty(sum(len(rows) for rows in old), dtype=torch.int64)
        for place, rows in zip(new, old):
            joined[place.flatten()] = rows
        _take(model, block.attention[0], joined, axes, out=True)
    columns = torch.arange(before.number * before.width).view(before.number, -1)[queries].flatten()
    _take(model, block.out, columns, axes, out=False)


def _keep_neurons(model: Any, block: Block, best: Tensor, axes: Axes) -> None:
    assert block.outof is not None
    there = sizes(model.get_submodule(block.outof))[0]
    for path in block.into:
        parts = sizes(model.get_submodule(path))[1] // there  # gate and value in one, one after the other
        _take(model, path, torch.cat([best + part * there for part in range(parts)]), axes, out=True)
    _take(model, block.outof, best, axes, out=False)


def _take(model: Any, path: str, index: Tensor, axes: Axes, *, out: bool) -> None:
    dim = 0 if out == isinstance(model.get_submodule(path), nn.Linear) else 1
    axes.setdefault(f"{path}.weight", {})[dim] = index
    if out:
        axes.setdefault(f"{path}.bias", {})[0] = index


def _best(score: Float[Tensor, "all"], number: int) -> Tensor:
    """The places of the largest scores, in their order."""
    return score.argsort(descending=True, stable=True)[:number].sort().values.cpu()


def _copy(model: Any, made: Any, kept: list[int], axes: Axes, channels: Tensor | None, found: list[Block]) -> None:
    """Every parameter and buffer of `made` out of `model`.

    Raises:
        RecipeError: one has no counterpart, or is cut where nothing says what stays.
    """
    name, root, old, new = type(model).__name__, stack(model) + ".", model.state_dict(), made.state_dict()
    own = tuple(f"{b.inner}." for b in found if b.inner != b.path)  # in there, a width is that of the heads
    known = tuple(f"{path}." for b in found for path in (*b.attention, b.out))
    origin = {key: _before(key, root, kept) for key in new}
    places = tuple(f"{root}{i}." for i in kept)
    needed = {key for key in old if key.startswith(places) or not key.startswith(root)}
    unmatched = ({*origin.values()} - old.keys()) | (needed - {*origin.values()})
    if unmatched:
        raise RecipeError(
            f"{name} is built otherwise at this size: {min(unmatched)} is in one of the two only. Which layers stay may matter (keep the "
            "first, and the order of their kinds), or a width that equals another one."
        )
    state: dict[str, Tensor] = {}
    for key, there in new.items():
        source = origin[key]
        value = old[source]
        unknown = source.startswith(own) and not source.startswith(known)
        for dim in range(value.dim()):
            at = axes.get(source, {}).get(dim)
            if at is None and channels is not None and not unknown and there.shape[dim] == len(channels):
                at = channels if value.shape[dim] != len(channels) else None
            value = value if at is None else value.index_select(dim, at.to(value.device))
        if value.shape != there.shape:
            raise RecipeError(
                f"{name} cannot be cut like this: {key} would be {list(there.shape)}, and what stays of it is not known ({list(value.shape)})."
            )
        state[key] = value.clone()
    made.load_state_dict(state)


def _before(key: str, root: str, kept: list[int]) -> str:
    """The name in the larger network."""
    if not key.startswith(root):
        return key
    number, _, rest = key.removeprefix(root).partition(".")
    return f"{root}{kept[int(number)]}.{rest}"


def _lines(texts: str | Sequence[str]) -> list[str]:
    if not isinstance(texts, str):
        return list(texts)
    if not Path(texts).is_file():
        raise RecipeError(f"texts '{texts}': there is no such file; needed is one text per line, or a list of texts.")
    lines = [line for line in Path(texts).read_text().splitlines() if line.strip()]
    if texts.endswith(".jsonl"):
        lines = [str(json.loads(line)["text"]) for line in lines]
    return lines


def _tokenised(texts: list[str], folder: str, batch_size: int, longest: int) -> Calibration:
    from limbeck.transforms.preparation import Tokenise

    reader = Tokenise(key="input_ids", tokenizer=folder, mask="attention_mask", longest=longest)
    if not texts:
        raise RecipeError("importance is to be measured on texts, and none were given.")
    for start in range(0, len(texts), batch_size):
        yield reader({"input_ids": texts[start : start + batch_size]}, None)
