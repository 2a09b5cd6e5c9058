from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.errors import RecipeError
from limbeck.models.cross_modal import (
    ActionFusion,
    AudioVisualFusion,
    DepthCNN,
    InertialCNN,
    LeNet5,
    SkeletonCNN,
    SpectrogramCNN,
)

SHAPES = {"image": (1, 28, 28), "audio": (1, 32, 32), "depth": (16, 40, 40), "skeleton": (60, 32), "inertial": (6, 64)}


def views(*names: str, rows: int = 2) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(rows, *SHAPES[name], generator=draw) for name in names]


NETWORKS = [
    (LeNet5(), ["image"], 10),
    (SpectrogramCNN(width=4), ["audio"], 10),
    (AudioVisualFusion(width=4), ["image", "audio"], 10),
    (DepthCNN(width=4), ["depth"], 27),
    (SkeletonCNN(width=4), ["skeleton"], 27),
    (InertialCNN(width=4), ["inertial"], 27),
    (ActionFusion(width=4), ["depth", "skeleton", "inertial"], 27),
    (ActionFusion(["skeleton", "inertial"], width=4, classes=5), ["skeleton", "inertial"], 5),
]


@pytest.mark.parametrize(("model", "names", "classes"), NETWORKS, ids=lambda value: type(value).__name__)
def test_logits_have_one_column_per_class_and_every_parameter_learns(
    model: nn.Module, names: list[str], classes: int
) -> None:
    model.eval()
    for parameter in model.parameters():  # far from zero, so that no ReLU is silent by chance
        nn.init.normal_(parameter, 0.02, 0.1)
    logits = model(*views(*names))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    torch.testing.assert_close(logits[:1], model(*[view[:1] for view in views(*names)]))


def test_published_sizes() -> None:
    """LeNet-5: 61,706 parameters. Fusion: 84 + 512 features joined, halved, then ten classes."""
    assert sum(p.numel() for p in LeNet5().parameters()) == 61_706
    fusion = AudioVisualFusion()
    assert (fusion.fc1.in_features, fusion.fc1.out_features, fusion.fc2.out_features) == (596, 298, 10)
    assert SpectrogramCNN(size=112).fc1.in_features == 128 * 14 * 14


def test_the_audio_visual_fusion_is_linear_after_the_join() -> None:
    torch.manual_seed(0)
    model = AudioVisualFusion(width=4).eval()
    joined: list[torch.Tensor] = []
    hook = model.concat.register_forward_hook(lambda module, inputs, output: joined.append(output))
    logits = model(*views("image", "audio"))
    hook.remove()
    weight = model.fc2.weight @ model.fc1.weight
    bias = model.fc2.weight @ model.fc1.bias + model.fc2.bias
    torch.testing.assert_close(logits, joined[0] @ weight.T + bias)
    assert joined[0].shape == (2, 84 + 64)
    assert joined[0].min() >= 0


def test_any_square_spectrogram_fits() -> None:
    large = torch.rand(2, 1, 112, 112)
    assert SpectrogramCNN(width=2, size=112)(large).shape == (2, 10)
    assert AudioVisualFusion(width=2)(torch.rand(2, 1, 28, 28), large).shape == (2, 10)


def test_names_to_listen_at() -> None:
    names = dict(AudioVisualFusion(width=4).named_modules())
    assert {"image.conv3", "image.fc1", "audio.conv5", "concat", "fc1", "fc2"} <= names.keys()
    names = dict(ActionFusion(width=4).named_modules())
    assert {"depth.conv3", "skeleton.fc1", "inertial.fc1", "concat", "fc1", "fc2"} <= names.keys()


def test_modalities_are_checked() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'skeleton'"):
        ActionFusion(["skeletons", "depth"])
    with pytest.raises(RecipeError, match="two or three different"):
        ActionFusion(["depth"])
    with pytest.raises(RecipeError, match="two or three different"):
        ActionFusion(["depth", "depth"])
    with pytest.raises(ValueError, match="depth, skeleton, inertial in this order; it got 2"):
        ActionFusion(width=4)(*views("depth", "skeleton"))
