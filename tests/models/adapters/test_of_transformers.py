"""Models of transformers as teachers and students: exactly what transformers itself computes, with names for the places."""

from __future__ import annotations

import json

import pytest
import torch
from saved_models import TEXTS, bert_config

from limbeck import RecipeError, Student, Teacher
from limbeck.views import View


def test_a_text_classifier_is_what_transformers_computes(bert):
    from transformers import AutoTokenizer, BertForSequenceClassification

    teacher = Teacher(bert)
    assert type(teacher.model) is BertForSequenceClassification
    teacher.look_at({"text": "text", "label": "label, 2 classes"})
    heard = teacher({"text": TEXTS})
    theirs = BertForSequenceClassification.from_pretrained(bert).eval()
    tokens = AutoTokenizer.from_pretrained(bert)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**tokens, output_hidden_states=True)
        pooled = theirs.bert(**tokens).pooler_output
    assert torch.equal(heard["logits"], expected.logits)
    assert torch.equal(heard["hidden"], expected.hidden_states[-1])
    assert torch.equal(heard["embedding"], pooled)
    assert teacher.labels == ["bad", "good"]


def test_padding_does_not_change_an_answer(bert):
    teacher = Teacher(bert)
    together = teacher({"text": TEXTS})["logits"]
    alone = torch.cat([teacher({"text": [text]})["logits"] for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_pictures_are_prepared_as_the_processor_says(vit):
    from transformers import ViTForImageClassification

    student = Student(vit)
    student.model.eval()
    view = student.look_at({"picture": "image, size 8", "label": "label"})
    assert view.named == {"pixel_values": "picture"}
    x = torch.rand(3, 3, 8, 8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]))
    with torch.no_grad():
        expected = ViTForImageClassification.from_pretrained(vit).eval()((x - mean) / std).logits
        torch.testing.assert_close(student({"picture": x})["logits"], expected, rtol=0, atol=1e-6)
        assert student({"picture": torch.rand(2, 3, 20, 20)})["logits"].shape == (2, 3)  # another size is brought to 8
        grey = torch.rand(2, 1, 8, 8)
        torch.testing.assert_close(
            student({"picture": grey})["logits"], student({"picture": grey.expand(-1, 3, -1, -1)})["logits"]
        )
    assert student.labels == ["cat", "dog", "fox"]
    assert View.of(view.spec()) == view


def test_without_a_processor_pictures_are_shown_as_they_are(resnet):
    student = Student(resnet)
    student.model.eval()
    view = student.look_at(["image", "label"])
    assert (view.named, view.transforms) == ({"pixel_values": "image"}, ())
    heard = student({"image": torch.rand(2, 3, 16, 16)})
    torch.testing.assert_close(heard["logits"], student.model.classifier[1](heard["embedding"]))
    assert heard["hidden"].shape[:2] == (2, 12)
    assert student.labels is None  # LABEL_0, LABEL_1 ... are no names


def test_columns_called_as_the_inputs_are_taken_and_the_label_is_not(bert):
    view = Teacher(bert).look_at(["input_ids", "attention_mask", "labels"])
    assert view.named == {"input_ids": "input_ids", "attention_mask": "attention_mask"}


def test_two_columns_of_pictures_must_be_chosen_between(vit):
    with pytest.raises(RecipeError, match=r"student.view=\[left\]"):
        Student(vit).look_at({"left": "image, size 8", "right": "image, size 8"})


def test_heads_by_name_and_changed_configurations(bert):
    made = Student(bert, args={"head": "sequence-classification", "num_labels": 5})
    assert made.model.classifier.out_features == 5
    assert made.labels is None
    tokens = Student(bert, args={"head": "token-classification"})
    assert type(tokens.model).__name__ == "BertForTokenClassification"
    headless = Student(bert, args={"head": "masked-lm"})
    assert headless.model.config.vocab_size == bert_config().vocab_size
    with pytest.raises(
        RecipeError, match=r"no AutoModelForSequenceClasification. Did you mean 'sequence-classification'\?"
    ):
        Student(bert, args={"head": "sequence-clasification"})


def test_a_model_without_a_head_gives_its_hidden_states(tmp_path):
    from transformers import BertModel

    BertModel(bert_config()).save_pretrained(tmp_path / "body")
    heard = Teacher(tmp_path / "body", view=View(input_ids="tokens"))({"tokens": torch.tensor([[2, 5, 3]])})
    assert heard["last_hidden_state"].shape == (1, 3, 16)
    assert "logits" not in heard


def test_a_smaller_copy_with_fresh_weights(bert):
    address = "limbeck.models.adapters.of_transformers:build"
    student = Student(address, args={"config": str(bert), "num_hidden_layers": 1})
    assert len(student.model.bert.encoder.layer) == 1
    assert student.source.spec["model"] == address
    again = Student(address, args={"config": str(bert), "num_hidden_layers": 1})
    assert not torch.equal(student.model.classifier.weight, again.model.classifier.weight)


def test_a_live_object_is_recognised(bert):
    from transformers import BertForSequenceClassification

    student = Student(BertForSequenceClassification.from_pretrained(bert))
    assert student.labels == ["bad", "good"]
    assert set(student.paths) == {"embedding", "hidden"}
    own = Student(BertForSequenceClassification.from_pretrained(bert), taps={"first": "bert.encoder.layer.0"})
    assert set(own.paths) == {"first"}  # what is given takes the place of what is proposed


def test_a_model_by_its_hub_name_out_of_the_cache(bert, tmp_path, monkeypatch):
    from huggingface_hub import constants

    held = tmp_path / "cache/models--lab--tiny"
    (held / "refs").mkdir(parents=True)
    (held / "refs/main").write_text("0" * 40)
    (held / "snapshots").mkdir()
    bert.rename(held / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    teacher = Teacher("lab/tiny")
    assert teacher.labels == ["bad", "good"]
    assert teacher.source.spec == {"model": "lab/tiny"}
    with pytest.raises(
        RecipeError, match=r"teacher.model 'lab/other': no such path here .* hub name transformers cannot read it"
    ):
        Teacher("lab/other")


def test_a_broken_folder_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(RecipeError, match="transformers cannot read it"):
        Teacher(tmp_path)


def test_a_mistyped_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(RecipeError, match="no such path here"):
        Teacher("runs/lost")


@pytest.mark.parametrize("number", [1, 5])
def test_a_network_with_another_number_of_layers_lists_the_kinds_of_as_many(number, tmp_path):
    from transformers import AutoConfig, ModernBertConfig

    from limbeck.models.adapters.of_transformers import build

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 0}
    config = ModernBertConfig(vocab_size=12, architectures=["ModernBertForMaskedLM"], **sizes, **ends)
    config.save_pretrained(tmp_path / "three")
    made = build(str(tmp_path / "three"), num_hidden_layers=number)
    kinds = config.layer_types
    assert made.config.layer_types == [kinds[i % 3] for i in range(number)]
    assert len(made.model.layers) == number
    made.save_pretrained(tmp_path / "made")
    assert AutoConfig.from_pretrained(tmp_path / "made").num_hidden_layers == number
