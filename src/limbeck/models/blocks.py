"""What stands where in a transformer: its blocks, queries, keys and values, outputs and neurons; by structure, not by model name."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from limbeck.errors import RecipeError

Rows = Int64[Tensor, "heads width"]

_END = r"(_?(proj|projection|lin|linear|layer))?$"
_PARTS = tuple(re.compile(f"(w_?)?({name})" + _END) for name in ("q|query", "k|key", "v|value"))
_FUSED = re.compile(r"((w_?)?qkv|query_key_value|c_attn)" + _END, re.IGNORECASE)
LAYOUTS = ("parts", "groups")


@dataclass(frozen=True)
class Block:
    """One block; every field is a path from the model's root.

    Attributes:
        path: the block itself.
        inner: what holds the queries, keys and values together.
        attention: the modules that give queries, keys and values; a single one where they are fused.
        out: what brings the heads back into the stream.
        extra: other affine maps inside the attention, whose meaning is not known here.
        into: what the neurons read: one module, or gate and value.
        outof: what the neurons write; None where the rest of the block is no two-layer network.
    """

    path: str
    inner: str
    attention: tuple[str, ...]
    out: str
    extra: tuple[str, ...]
    into: tuple[str, ...]
    outof: str | None


def affine(module: nn.Module) -> bool:
    """Whether it is a matrix with a bias: `nn.Linear`, or the `Conv1D` of GPT-2 and its kin."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs of an affine map."""
    first, last = module.weight.shape
    return (last, first) if isinstance(module, nn.Linear) else (first, last)


def stack(model: nn.Module) -> str:
    """The path of the list of the network's blocks: the one whose members all hold queries, keys and values.

    Raises:
        RecipeError: there is none, or more than one (an encoder with a decoder, a network of two towers).
    """
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) and all(map(_attends, module))
    ]
    outer = [path for path in found if not any(path.startswith(other + ".") for other in found if other != path)]
    if len(outer) != 1:
        told = f"several lists of them ({', '.join(outer)})" if outer else "no list of them"
        raise RecipeError(
            f"{type(model).__name__}: needed is one list of blocks that hold query, key and value projections; it has {told}."
        )
    return outer[0]


def blocks(model: nn.Module) -> list[Block]:
    """The blocks of a network in their order."""
    root = stack(model)
    return [_block(f"{root}.{name}", module) for name, module in model.get_submodule(root).named_children()]


def _attends(module: nn.Module) -> bool:
    names = [path.rpartition(".")[2] for path, part in module.named_modules() if affine(part)]
    return any(map(_FUSED.match, names)) or all(any(map(part.match, names)) for part in _PARTS)


def _block(path: str, block: nn.Module) -> Block:
    maps = {name: part for name, part in block.named_modules() if affine(part)}

    def called(pattern: re.Pattern[str]) -> str | None:
        return next((name for name in maps if pattern.match(name.rpartition(".")[2])), None)

    fused = called(_FUSED)
    attention = [fused] if fused is not None else [called(part) for part in _PARTS]
    assert None not in attention  # or it would not be a block
    around = str(attention[0])
    inside: list[str] = []
    while around and not inside:
        around = around.rpartition(".")[0]
        inside = [n for n in maps if n.startswith(around + "." if around else "") and n not in attention]
    if not inside:
        raise RecipeError(f"the attention in {path} has no output projection of its own; such blocks are not known.")
    if not around:  # nothing holds the attention together: its output is what follows the projections
        inside = inside[:1]
    rest = [name for name in maps if name not in attention and name not in inside]
    into, outof = _neurons({name: sizes(maps[name]) for name in rest}, sizes(maps[inside[-1]])[1])
    return Block(
        path,
        f"{path}.{attention[0]}".rpartition(".")[0],
        tuple(f"{path}.{name}" for name in attention),
        f"{path}.{inside[-1]}",
        tuple(f"{path}.{name}" for name in inside[:-1]),
        tuple(f"{path}.{name}" for name in into),
        None if outof is None else f"{path}.{outof}",
    )


def _neurons(maps: dict[str, tuple[int, int]], width: int) -> tuple[list[str], str | None]:
    """Which maps go into the neurons and which out of them; nothing where there are others too (experts, adapters)."""
    ends = [name for name, (_, outputs) in maps.items() if outputs == width]
    if not ends:
        return [], None
    last, number = ends[-1], maps[ends[-1]][0]
    into = [name for name in maps if name != last]
    fits = all(maps[name][0] == width and maps[name][1] in (number, 2 * number) for name in into)
    return (into, last) if into and fits else ([], None)


@dataclass(frozen=True)
class Heads:
    """How the rows of queries, keys and values belong to heads: `number` query heads, `groups` of keys and values.

    `layout` is None where the three are modules of their own; else `parts` (all queries, all keys, all values) or
    `groups` (per group its queries, its key, its value).
    """

    number: int
    groups: int
    width: int
    layout: str | None = None

    def rows(self) -> tuple[Rows, Rows, Rows]:
        """The rows of queries [number, width], keys and values [groups, width] in their module, or in the fused one."""
        queries, pairs = self.number * self.width, self.groups * self.width
        if self.layout is None:
            starts = (0, 0, 0)
        elif self.layout == "parts":
            starts = (0, queries, queries + pairs)
        else:
            each = self.number // self.groups
            all_rows = torch.arange(queries + 2 * pairs).view(self.groups, each + 2, self.width)
            return all_rows[:, :each].reshape(-1, self.width), all_rows[:, each], all_rows[:, each + 1]
        counts = (self.number, self.groups, self.groups)
        q, k, v = (torch.arange(s, s + n * self.width).view(n, self.width) for s, n in zip(starts, counts))
        return q, k, v

    def split(self, projected: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, tokens, heads * width], in the order of the heads, out of what the modules gave."""
        if self.layout is None:
            q, k, v = projected
            return q, k, v
        q, k, v = (projected[0][..., rows.flatten().to(projected[0].device)] for rows in self.rows())
        return q, k, v


def heads_of(model: Any, found: list[Block]) -> Heads:
    """The heads of a network of `transformers`, the same in every block.

    Fused projections are told apart by trying: with the right layout, heads may change places and nothing else changes.

    Raises:
        RecipeError: the numbers do not fit the projections, or no known layout does.
    """
    config = getattr(model, "config", None)
    number = getattr(config, "num_attention_heads", None)
    if not isinstance(number, int):
        raise RecipeError(f"{type(model).__name__} does not say how many attention heads it has (num_attention_heads).")
    groups = getattr(config, "num_key_value_heads", None) or number
    first = found[0]
    width, left = divmod(sizes(model.get_submodule(first.out))[0], number)
    rows = [sizes(model.get_submodule(path))[1] for path in first.attention]
    if len(rows) == 3:
        if left or rows != [number * width, groups * width, groups * width]:
            raise _odd(model, number, rows)
        return Heads(number, groups, width)
    if left or rows != [(number + 2 * groups) * width]:
        raise _odd(model, number, rows)
    for layout in LAYOUTS:
        heads = Heads(number, groups, width, layout)
        if number == 1 or _exchangeable(model, heads):
            return heads
    raise RecipeError(
        f"{type(model).__name__}: the order of queries, keys and values in {first.attention[0]} is not known."
    )


def _odd(model: nn.Module, number: int, rows: list[int]) -> RecipeError:
    return RecipeError(
        f"{type(model).__name__} says it has {number} heads, and its query, key and value projections have {rows} rows, which does not fit."
    )


def _exchangeable(model: Any, heads: Heads) -> bool:
    """Whether a network of one such block gives the same when its heads are turned round by this layout."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        twin = of_config(model, with_layers(model.config, [0]), dtype=torch.float64, body=True).eval()
        words = torch.arange(1, 7).view(1, 6) % model.config.vocab_size
        (block,) = blocks(twin)
        with torch.no_grad():
            before = twin(input_ids=words)[0]
            for rows, turned in zip(heads.rows(), heads.rows()):
                _turn(twin.get_submodule(block.attention[0]), rows.flatten(), turned.flip(0).flatten(), out=True)
            mixed = torch.arange(heads.number * heads.width).view(heads.number, -1)
            _turn(twin.get_submodule(block.out), mixed.flatten(), mixed.flip(0).flatten(), out=False)
            return bool(torch.allclose(twin(input_ids=words)[0], before, rtol=0, atol=1e-9))


def _turn(module: Any, to: Tensor, of: Tensor, *, out: bool) -> None:
    dim = 0 if out == isinstance(module, nn.Linear) else 1
    module.weight.data.index_copy_(dim, to, module.weight.data.index_select(dim, of))
    if out and module.bias is not None:
        module.bias.data.index_copy_(0, to, module.bias.data.index_select(0, of))


def of_config(model: Any, config: Any, *, dtype: torch.dtype | None = None, body: bool = False) -> Any:
    """A new network of the model's class (or of its body's, without a head) with this configuration and fresh weights."""
    kind = type(model.base_model if body else model)
    return kind._from_config(config, dtype=dtype or model.dtype, attn_implementation=config._attn_implementation)


def with_layers(config: Any, kept: list[int]) -> Any:
    """The configuration with these layers only: their number, and every list that has one entry per layer."""
    made, number = copy.deepcopy(config), config.num_hidden_layers
    for key, value in _lists(config):
        if len(value) == number:
            setattr(made, key, type(value)(value[i] for i in kept))
    made.num_hidden_layers = len(kept)
    return made


def _lists(config: Any) -> Iterator[tuple[str, Any]]:
    for key in config.to_dict():
        value = getattr(config, key, None)
        if isinstance(value, (list, tuple)) and "token" not in key and key != "architectures":
            yield key, value
