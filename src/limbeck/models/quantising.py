"""Weights of linear layers in 8 or 4 bits, for a network that only answers: products are of the rounded weights, in full.

- `int8`: torchao, one scale per output: w ~ scale * code with codes in [-127, 127].
- `int4`: here, one scale and one offset for every 32 inputs of an output: w ~ low + scale * code with codes in [0, 15],
  two in a byte; weights are unpacked for each product. (torchao's 4-bit weights want a package of kernels of their own on
  some devices, and are made for one token at a time; a teacher reads many at once.)
- `nf4`: bitsandbytes, where it is installed: codes at the quantiles of a normal distribution, Dettmers et al. 2023,
  "QLoRA" (arXiv:2305.14314), section 3.

The head of a language model stays as it is: the fused losses read its weights.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from limbeck.errors import RecipeError

Bits = Literal["int8", "int4", "nf4"]
GROUP = 32
_MOST = 15


class Packed(nn.Module):
    """A linear layer whose weights are 4-bit codes: low + scale * code, groups of `GROUP` inputs sharing low and scale."""

    codes: UInt8[Tensor, "out half"]
    low: Float[Tensor, "out groups 1"]
    scale: Float[Tensor, "out groups 1"]
    bias: Float[Tensor, "out"] | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, low, scale = pack(layer.weight.detach())
        for name, tensor in (("codes", codes), ("low", low), ("scale", scale)):
            self.register_buffer(name, tensor)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The rounded weights, unpacked."""
        return unpack(self.codes, self.low, self.scale)[:, : self.in_features]

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """The product with the rounded weights."""
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """As a linear layer says it."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def pack(
    weight: Float[Tensor, "out in"],
) -> tuple[UInt8[Tensor, "out half"], Float[Tensor, "out groups 1"], Float[Tensor, "out groups 1"]]:
    """Codes (two in a byte, the first in the lower bits), lows and scales; no weight is off by more than scale / 2.

    Inputs are filled up to whole groups with copies of the last one, which changes neither low nor scale.
    """
    missing = -weight.shape[1] % GROUP
    filled = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1).unflatten(1, (-1, GROUP))
    low = filled.amin(-1, keepdim=True)
    scale = (filled.amax(-1, keepdim=True) - low) / _MOST
    codes = ((filled - low) / torch.where(scale > 0, scale, 1)).round().clamp(0, _MOST).to(torch.uint8).flatten(1)
    return codes[:, ::2] | (codes[:, 1::2] << 4), low, scale


def unpack(
    codes: UInt8[Tensor, "out half"], low: Float[Tensor, "out groups 1"], scale: Float[Tensor, "out groups 1"]
) -> Float[Tensor, "out filled"]:
    """The weights that `pack` rounded to."""
    each = torch.stack([codes & _MOST, codes >> 4], -1).flatten(1).unflatten(1, (-1, GROUP))
    return torch.addcmul(low, each.to(scale.dtype), scale).flatten(1)


def quantise(model: nn.Module, bits: Bits, device: torch.device) -> int:
    """Round the weights of the linear layers, in place, one layer after another on `device`; gives how many layers.

    Raises:
        RecipeError: a library is missing, or there is no linear layer.
    """
    language: Any = model
    head = language.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and m is not head and name]
    if not found:
        raise RecipeError(f"teacher.quantize: {type(model).__name__} has no linear layers to round. Leave it out.")
    make = {"int8": _int8, "int4": _int4, "nf4": _nf4}[bits]()
    for name, layer in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, make(layer.to(device)))
    return len(found)


def size_of(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are held, rounded ones included."""
    held: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> None:
        if hasattr(tensor, "__tensor_flatten__"):
            for name in tensor.__tensor_flatten__()[0]:  # type: ignore[operator]
                inner = getattr(tensor, name)
                if isinstance(inner, Tensor):
                    note(inner)
        else:
            held[id(tensor)] = tensor

    for tensor in (*model.parameters(), *model.buffers()):
        note(tensor)
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())


def _int4() -> Any:
    return Packed


def _int8() -> Any:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise RecipeError(
            f"teacher.quantize=int8 needs torchao ({error}): pip install torchao. Or teacher.quantize=int4"
        ) from error

    def rounded(layer: nn.Linear) -> nn.Module:
        layer.requires_grad_(False)
        quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
        return layer

    return rounded


def _nf4() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise RecipeError(
            f"teacher.quantize=nf4 needs bitsandbytes ({error}): pip install bitsandbytes. Or teacher.quantize=int4"
        ) from error

    def rounded(layer: nn.Linear) -> nn.Module:
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            quant_type="nf4",
        )
        made.load_state_dict(layer.state_dict())
        made.requires_grad_(False)
        return made.to(layer.weight.device)

    return rounded
