"""A tiny encoder with its tokenizer in a folder, and texts in classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "bad", "film", "very", "not", "a", "the", "was", "play"]
NAMES = ["bad", "good"]


def tokenizer_files(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=12, **names).save_pretrained(folder)


def encoder(folder: Path, layers: int = 4, width: int = 16, heads: int = 4, seed: int = 0, **more: Any) -> Path:
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        max_position_embeddings=16,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=24,
        **({"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}} | more),
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer_files(folder)
    return folder


def manifest(folder: Path, rows: int = 16) -> Path:
    """Texts that end in their class; the last word tells it."""
    drawn = torch.Generator().manual_seed(0)
    lines = ["text,label,split"]
    for i in range(rows + 8):
        filler = torch.randint(2, len(WORDS), (1 + i % 4,), generator=drawn).tolist()
        label = NAMES[i % 2]
        lines.append(
            f"{' '.join([*(WORDS[j] for j in filler), label])},{label},{'train' if i < rows else 'validation'}"
        )
    folder.mkdir(exist_ok=True)
    (folder / "texts.csv").write_text("\n".join(lines) + "\n")
    return folder / "texts.csv"


def keys(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """A recipe on these texts over two steps, without a method."""
    data = {"path": str(manifest(tmp_path / "data")), "columns": {"text": "text", "label": "label"}}
    train = {"steps": 2, "batch_size": 8}
    return {"task": "classification", "data": data, "control": "none", "train": train} | more
