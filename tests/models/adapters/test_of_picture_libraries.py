"""timm, torchvision and open_clip through their own factories, where they are installed; what is said of them, anywhere."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from limbeck import Student
from limbeck.models.adapters import family_of
from limbeck.models.adapters.columns import column_of, last_linear, picture_view

RUN = "pip install -c constraints.txt torchvision timm open_clip_torch && pytest tests/models/adapters/test_of_picture_libraries.py"


def needs(name: str):
    """The library, or a skip with the reason and the command that runs the test where it is there."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(
            f"{name} cannot be imported here ({type(error).__name__}: {error}); torchvision must match torch. Run: {RUN}"
        )


def test_timm():
    timm = needs("timm")
    student = Student("timm:create_model", args={"model_name": "resnet10t", "num_classes": 3})
    assert family_of(student.model) == "of_timm"
    student.model.eval()
    view = student.look_at({"picture": "image, size 32", "label": "label"})
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(student.model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        heard = student({"picture": x})
        torch.testing.assert_close(heard["logits"], student.model((x - mean) / std))
        torch.testing.assert_close(heard["logits"], student.model.get_classifier()(heard["embedding"]))
    assert view.keys == ("picture",)
    assert timm.__version__


def test_torchvision():
    needs("torchvision")
    student = Student("torchvision.models:resnet18", args={"num_classes": 3})
    assert family_of(student.model) == "of_torchvision"
    student.model.eval()
    student.look_at(["image", "label"])
    with torch.no_grad():
        x = torch.rand(2, 3, 32, 32)
        heard = student({"image": x})
        torch.testing.assert_close(heard["logits"], student.model(x))  # fresh weights: nothing is standardised
        torch.testing.assert_close(heard["logits"], student.model.fc(heard["embedding"]))
    assert student.labels is None


def test_open_clip():
    needs("open_clip")
    teacher = Student("open_clip:create_model", args={"model_name": "RN50", "pretrained": None})
    assert family_of(teacher.model) == "of_open_clip"
    teacher.model.eval()
    view = teacher.look_at(["image", "label"])
    assert view.named == {"image": "image"}
    with torch.no_grad():
        heard = teacher({"image": torch.rand(1, 3, 64, 64)})
    assert heard["embedding"].shape == (1, teacher.model.text_projection.shape[1])


def _called(module: str, **attributes) -> nn.Module:
    """A stand-in whose class comes from a library that may not be here."""
    kind = type("Net", (nn.Module,), {"__module__": module, "forward": lambda self, x: self.head(x.flatten(1))})
    net = kind()
    net.body, net.head = nn.Identity(), nn.Linear(48, 3)
    for name, value in attributes.items():
        setattr(net, name, value)
    return net


def test_a_timm_model_says_how_it_is_shown_pictures():
    facts = {
        "classifier": "head",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "input_size": (3, 4, 4),
        "fixed_input_size": True,
    }
    student = Student(_called("timm.models.resnet", pretrained_cfg=facts))
    student.look_at({"picture": "image, size 4"})
    x = torch.rand(2, 3, 4, 4)
    heard = student({"picture": x})
    torch.testing.assert_close(heard["embedding"], ((x - 0.5) * 4).flatten(1))
    torch.testing.assert_close(heard["logits"], student.model.head(heard["embedding"]))
    assert student({"picture": torch.rand(2, 3, 9, 9)})["logits"].shape == (2, 3)


def test_a_torchvision_model_with_fresh_weights_is_shown_pictures_as_they_are():
    student = Student(_called("torchvision.models.resnet"))
    view = student.look_at(["image", "label"])
    assert (view.keys, view.transforms, student.paths) == (("image",), (), {"embedding": "head:input"})


def test_somebodys_own_network_is_left_alone():
    student = Student(_called("my_models"))
    assert (student.paths, student.source.view_for, family_of(student.model)) == ({}, None, None)


def test_which_column_is_meant():
    assert column_of(["label", "image"], "image") == "image"
    assert column_of({"left": "image, size 8", "label": "label"}, "image") == "left"
    assert column_of({"left": "image", "right": "image"}, "image") is None
    assert column_of({"left": "imagery"}, "image") is None
    batch = {"a": torch.rand(2, 3, 4, 4), "b": torch.zeros(2).long(), "words": ["x", "y"], "sound": torch.rand(2, 100)}
    assert [column_of(batch, kind) for kind in ("image", "text", "audio")] == ["a", "words", "sound"]
    assert picture_view(["label"], None, None, None, None) is None


def test_the_last_linear_layer_of_a_width():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 7), nn.ReLU())
    assert (last_linear(net), last_linear(net, 3), last_linear(net, 5)) == ("1", "0", None)
    assert last_linear(nn.Linear(2, 2)) is None  # the model itself is its output
