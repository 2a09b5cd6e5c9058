import torch
from torch.nn import functional as F

from limbeck.bridges import MLP, Linear


def test_linear_maps_the_last_dimension_whatever_lies_before():
    bridge = Linear(3, 5)
    x = torch.randn(2, 4, 3)
    assert bridge(x).shape == (2, 4, 5)
    assert torch.equal(bridge(x)[:, 1], bridge(x[:, 1]))
    torch.testing.assert_close(bridge(x), x @ bridge.map.weight.T + bridge.map.bias)
    assert Linear(3, 5, bias=False)(torch.zeros(1, 3)).eq(0).all()


def test_mlp_is_two_affine_maps_with_gelu_between():
    bridge = MLP(3, 5)
    assert bridge.sizes == (3, 5, 5)
    assert MLP(3, 5, hidden=7).sizes == (3, 7, 5)
    first, _, second = bridge.map
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(bridge(x), second(F.gelu(first(x))))
