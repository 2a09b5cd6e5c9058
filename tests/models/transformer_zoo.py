"""Tiny networks of many classes of transformers, in float64, with weights that matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 24}
WORDS = {"vocab_size": 30, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SIZES | WORDS | {"num_key_value_heads": 2}
EPS = 1e-14  # norms that are nearly exact, so that a norm of a norm is nearly itself

MAKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForSequenceClassification": ("BertConfig", SIZES | WORDS | {"layer_norm_eps": EPS}),
    "BertForMaskedLM": ("BertConfig", SIZES | WORDS | {"layer_norm_eps": EPS}),
    "RobertaForSequenceClassification": ("RobertaConfig", SIZES | WORDS | {"layer_norm_eps": EPS}),
    "DistilBertForMaskedLM": (
        "DistilBertConfig",
        {"vocab_size": 30, "dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 16},
    ),
    "ElectraForSequenceClassification": (
        "ElectraConfig",
        SIZES | WORDS | {"embedding_size": 12, "layer_norm_eps": EPS},
    ),
    "ModernBertForMaskedLM": (
        "ModernBertConfig",
        SIZES | WORDS | {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": 30, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 16, "n_inner": 24},
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SIZES | WORDS),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "MistralForCausalLM": ("MistralConfig", GROUPED | {"sliding_window": 3}),
    "Qwen2ForCausalLM": (
        "Qwen2Config",
        GROUPED
        | {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    ),
    "Qwen3ForCausalLM": ("Qwen3Config", GROUPED | {"head_dim": 8}),
    "Gemma2ForCausalLM": ("Gemma2Config", GROUPED | {"head_dim": 8, "sliding_window": 3}),
    "Phi3ForCausalLM": ("Phi3Config", GROUPED),
}
NAMES = list(MAKERS)
IDS = torch.tensor([[5, 6, 7, 8, 9, 3, 4], [9, 1, 7, 2, 20, 0, 0]])
MASK = (IDS != 0).long()


def made(name: str, seed: int = 0, **more: Any) -> Any:
    kind, keys = MAKERS[name]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, kind)(**keys | more)).double().eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # fresh biases are zero and fresh weights small, so little would depend on them
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        keys = {} if type(model).__name__.startswith(("Distil", "Modern")) else {"use_cache": False}
        return model(input_ids=IDS, attention_mask=MASK, **keys).logits


def rows(model: Any, path: str) -> torch.Tensor:
    """The matrix of an affine map [outputs, inputs], to be written into."""
    module = model.get_submodule(path)
    return module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T


def silence(model: Any, path: str) -> None:
    module = model.get_submodule(path)
    module.weight.data.zero_()
    if module.bias is not None:
        module.bias.data.zero_()
