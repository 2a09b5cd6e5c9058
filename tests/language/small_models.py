"""Language models of a few hundred weights, of transformers and plain, with what is read of a tokenizer, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.language.prompts import UNCOUNTED

END, PAD, SIZE = 1, 0, 11


@dataclass
class Words:
    """Eleven tokens: padding, an end, and nine that spell one to three bytes."""

    eos: list[int] = field(default_factory=lambda: [END])
    pad: int = PAD
    size: int = SIZE

    @property
    def pieces(self) -> list[bytes]:
        return [b"", b"", *(bytes([96 + i] * (1 + i % 3)) for i in range(2, SIZE))]


class Causal(nn.Module):
    """Logits [batch, tokens, SIZE] from the words so far: a recurrent layer, and nothing of transformers."""

    def __init__(self, width: int = 6, dropout: float = 0.0):
        super().__init__()
        self.embed, self.memory = nn.Embedding(SIZE, width), nn.GRU(width, width, batch_first=True)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, SIZE)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.drop(self.memory(self.embed(input_ids))[0])) * 3


def llama(seed: int = 0, *, size: int = SIZE, context: int = 64, sharp: float = 4.0, **more: Any) -> Any:
    """A Llama of one layer whose weights are large enough that its distributions differ from each other."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        **more,
    )
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= sharp
    return model.eval()


def gpt2(seed: int = 0, *, context: int = 16) -> Any:
    """A GPT-2 of one layer: positions have weights of their own, and there are `context` of them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=SIZE, n_embd=16, n_layer=1, n_head=2, n_positions=context, initializer_range=0.4, bos_token_id=None,
        eos_token_id=END, pad_token_id=PAD, attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def batch_of(texts: Sequence[tuple[Sequence[int], Sequence[int]]], first: int = 0) -> dict[str, Tensor]:
    """Prompts with answers, as a language task has them."""
    width = max(len(a) + len(b) for a, b in texts)
    ids, mask = torch.full((len(texts), width), PAD), torch.zeros(len(texts), width, dtype=torch.int64)
    target = torch.full((len(texts), width), UNCOUNTED)
    for i, (prompt, answer) in enumerate(texts):
        row = torch.tensor([*prompt, *answer])
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        target[i, len(prompt) - 1 : len(row) - 1] = row[len(prompt) :]
    sizes = torch.tensor([sum(len(Words().pieces[t]) for t in answer) for _, answer in texts])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "target": target,
        "answer": target != UNCOUNTED,
        "answer_bytes": sizes,
        "id": torch.arange(first, first + len(texts)),
    }
