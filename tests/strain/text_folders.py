"""A tiny encoder with its tokenizer in a folder, and texts in classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.actors import Student, Teacher
from limbeck.data.load import load_data
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.tasks import Task

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


def pair(tmp_path: Path, student: Any = None, teacher: Any = None, **train: Any) -> Situation:
    """An encoder of four layers and one of two as teacher and student, on these texts; `float64`, without dropout."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    big = teacher or Teacher(encoder(tmp_path / "teacher", **still))
    small = student or Student(encoder(tmp_path / "student", layers=2, width=8, heads=2, seed=1, **still))
    for actor in (small, big):
        actor.model.double()
    data = load_data(str(manifest(tmp_path / "data")), columns={"text": "text", "label": "label"})
    settings = TrainSettings(**({"steps": 2, "batch_size": 8} | train))
    return Situation(small, big, Task("classification", labels=NAMES), data, settings)


def settled(method: Method, where: Situation, rows: int = 5) -> dict[str, Any]:
    """The method set up in its situation, both networks in eval mode, and a batch of texts of different length."""
    for actor in (where.student, where.teacher):
        actor.look_at(where.data.columns)
    settle(method, where)
    where.student.model.eval()
    return where.data["train"].__getitems__(list(range(rows)))


def inside(model: Any, reader: Any, texts: list[str]) -> tuple[Any, torch.Tensor]:
    """What transformers itself says of texts: hidden states and logits; and the mask."""
    tokens = reader(texts, padding=True, return_tensors="pt")
    return model(**tokens, output_hidden_states=True), tokens["attention_mask"].bool()
