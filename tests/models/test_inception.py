"""Inception v3 of the FID: the numbers of torch-fidelity's network on the same weights, its file, and files of other networks."""

import math
from functools import cache
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import RecipeError
from limbeck.models import inception
from limbeck.models.inception import Inception, load
from limbeck.randomness import normal, uniform


@cache
def weights():
    """Weights that anybody draws again, in the names and shapes of the published file."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items()}
    state = {}
    for i, (name, shape) in enumerate(shapes.items()):
        seed, count = torch.tensor([i]), math.prod(shape)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            values = uniform(seed, count)[0] + 0.5
        elif name.endswith("bn.weight"):
            values = uniform(seed, count)[0] * 0.7 + 0.8
        else:
            spread = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
            values = normal(seed, count)[0] * spread
        state[name] = values.view(shape)
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    place = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(weights(), place)
    return place


def test_its_numbers_are_those_of_torch_fidelity(file):
    """Computed once by torch-fidelity 0.4.0 on these weights and this picture, (x - 128) / 128; the whole vectors were equal bit for bit."""
    net = load(file)
    x = uniform(torch.tensor([7]), 3, 299, 299).mul(255).floor()
    with torch.no_grad():
        found = net(((x - 128) / 128 + 1) / 2)
    embedding, logits = found["embedding"][0], found["logits"][0]
    assert embedding.shape == (2048,)
    assert float(embedding.sum()) == pytest.approx(428708.09375, rel=1e-3)
    expected = torch.tensor([779.8080444, 0.0, 2.864606, 54.126293, 349.12753, 0.0])
    torch.testing.assert_close(embedding[::400], expected, rtol=1e-3, atol=1e-2)
    expected = torch.tensor([-758.57886, 32.616688, -214.305237, 608.298065, -167.322876])
    torch.testing.assert_close(logits[::250], expected, rtol=1e-3, atol=0.1)


def test_it_has_as_many_numbers_as_the_published_file():
    assert sum(value.numel() for value in weights().values()) == 23_885_392


def test_pictures_of_any_size_are_looked_at_alone_and_without_a_graph(file):
    net = load(file)
    pictures = torch.rand(2, 3, 20, 30)
    one, both = net(pictures[:1])["embedding"], net(pictures)["embedding"]
    torch.testing.assert_close(one[0], both[0], rtol=1e-3, atol=1e-2)
    assert not both.requires_grad
    assert not net.training


def test_files_of_other_networks_are_refused_with_the_address_of_the_right_one(tmp_path):
    state = weights()
    other = {name: value for name, value in state.items() if not name.startswith("Mixed_7c")}
    save_file(other, tmp_path / "half.safetensors")
    with pytest.raises(RecipeError, match=r"lacks Mixed_7c\..*github\.com"):
        load(tmp_path / "half.safetensors")
    thousand = (
        other | {name: v for name, v in state.items() if name.startswith("Mixed_7c")} | {"fc.bias": torch.zeros(1000)}
    )
    save_file(thousand, tmp_path / "torchvision.safetensors")
    with pytest.raises(RecipeError, match=r"has fc.bias of shape \[1000\], not \[1008\]"):
        load(tmp_path / "torchvision.safetensors")
    with pytest.raises(RecipeError, match="there is no such file"):
        load(tmp_path / "gone.pth")


def test_without_a_network_it_says_how_to_give_a_path(monkeypatch):
    def no_network(*args, **options):
        assert options["check_hash"]
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    with pytest.raises(RecipeError, match=r"Name or service not known.*evaluate\.fid\.classifier=FILE\.pth"):
        load()
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **o: weights())
    assert isinstance(load(), Inception)
    assert inception.URL.endswith("6726825d.pth")
