"""Tiny models saved by the real classes of their libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "not", "a", "the"]
TEXTS = ["a good film", "a bad film", "the very good film", "not a good film", "very very bad"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def tokenizer_files(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=12, **names).save_pretrained(folder)


def bert_config(**more):
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes, **more)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A classifier of texts with a tokenizer beside it; its classes are called bad and good."""
    from transformers import BertForSequenceClassification

    names = {0: "bad", 1: "good"}
    model = BertForSequenceClassification(bert_config(id2label=names, label2id={v: k for k, v in names.items()}))
    model.save_pretrained(tmp_path / "bert")
    tokenizer_files(tmp_path / "bert")
    return tmp_path / "bert"


def vit_folder(folder: Path, names: list[str]) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=8,
        patch_size=4,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    processor = {"do_resize": True, "size": {"height": 8, "width": 8}, "do_normalize": True}
    processor |= {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.5],
        "image_processor_type": "ViTImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return vit_folder(tmp_path / "vit", ["cat", "dog", "fox"])


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """Its classes have no names of their own, as long as nobody gave them any."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"
