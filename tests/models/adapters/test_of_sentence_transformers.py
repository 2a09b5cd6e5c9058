"""A folder of sentence-transformers gives the embeddings that the library itself gives."""

from __future__ import annotations

import pytest
import torch
from saved_models import TEXTS, bert_config, tokenizer_files

from limbeck import RecipeError, Teacher
from limbeck.models import adapters

library = pytest.importorskip("sentence_transformers")


@pytest.fixture
def folder(tmp_path):
    from transformers import BertModel

    BertModel(bert_config()).save_pretrained(tmp_path / "bert")
    tokenizer_files(tmp_path / "bert")
    try:
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    except ModuleNotFoundError:  # before version 6
        from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    body = Transformer(str(tmp_path / "bert"), max_seq_length=8)
    parts = [body, Pooling(16), Dense(16, 6, activation_function=torch.nn.Tanh()), Normalize()]
    library.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "sentences"))
    return tmp_path / "sentences"


def test_embeddings_are_those_of_the_library(folder):
    assert adapters.folder_of(folder) == "of_sentence_transformers"
    teacher = Teacher(folder)
    teacher.look_at({"text": "text"})
    heard = teacher({"text": TEXTS})
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(heard["embedding"], expected, rtol=0, atol=1e-6)
    assert heard["embedding"].shape == (5, 6)
    assert heard["hidden"].shape[::2] == (5, 16)
    torch.testing.assert_close(heard["embedding"].norm(dim=1), torch.ones(5))


def test_texts_are_cut_at_the_length_of_the_pipeline(folder):
    teacher = Teacher(folder)
    long = " ".join(["very"] * 30)
    assert teacher({"text": [long]})["hidden"].shape[1] == 8


def test_a_folder_that_it_cannot_read(folder):
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "no.such.Module"}]')
    with pytest.raises(RecipeError, match="sentence-transformers cannot read it"):
        Teacher(folder)
