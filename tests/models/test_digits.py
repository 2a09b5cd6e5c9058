from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.models.digits import AudioCNN, Fusion, ImageCNN


def batch(rows: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"image": torch.rand(rows, 1, 8, 8, generator=draw), "audio": torch.rand(rows, 1, 32, 32, generator=draw)}


@pytest.mark.parametrize(
    ("network", "views", "width"), [(ImageCNN, ["image"], 4), (AudioCNN, ["audio"], 4), (Fusion, ["image", "audio"], 4)]
)
def test_logits_have_one_column_per_class_and_every_parameter_learns(
    network: type[nn.Module], views: list[str], width: int
) -> None:
    torch.manual_seed(0)
    model = network(width=width, classes=7).eval()
    logits = model(*[batch()[view] for view in views])
    assert logits.shape == (3, 7)
    assert {"fc1", "fc2"} <= dict(model.named_modules()).keys()
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_sample_is_seen_alone() -> None:
    model = Fusion(width=4).eval()
    views = batch()
    together = model(**views)
    alone = torch.cat([model(**{name: view[i : i + 1] for name, view in views.items()}) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_the_fusion_hears_and_sees() -> None:
    model = Fusion(width=4).eval()
    views = batch(1)
    both = model(**views)
    assert not torch.allclose(both, model(views["image"], torch.zeros_like(views["audio"])))
    assert not torch.allclose(both, model(torch.zeros_like(views["image"]), views["audio"]))


def test_the_joined_features_are_those_of_the_branches() -> None:
    model = Fusion(width=4).eval()
    heard = []
    model.concat.register_forward_hook(lambda module, inputs, output: heard.append(output))
    views = batch()
    model(**views)
    expected = torch.cat([model.image.features(views["image"]), model.audio.features(views["audio"])], dim=1)
    torch.testing.assert_close(heard[0], expected)


def test_the_student_is_smaller_than_its_teacher() -> None:
    sizes = [sum(p.numel() for p in network().parameters()) for network in (ImageCNN, AudioCNN, Fusion)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2
