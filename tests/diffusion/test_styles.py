"""Rows of styles: nothing at first, a row by its number or a mixture by weights, the usual one without a word."""

import copy

import pytest
import torch

from limbeck.diffusion.styles import learn_styles
from limbeck.errors import RecipeError
from limbeck.models.toy import PointDenoiser

X, T = torch.tensor([[0.3, -1.0], [1.0, 0.2]]), torch.tensor([0.2, 1.0])


def operated(usual=(1.0, 0.0, 0.0), scale=0.0):
    torch.manual_seed(0)
    net = PointDenoiser(width=8)
    plain = net.predict(X, T)
    learn_styles(net, usual)
    with torch.no_grad():
        net.styles.rows.add_(scale * torch.randn(3, 8))
    return net, plain


def test_at_first_all_styles_say_what_the_network_said():
    net, plain = operated()
    for given in ({}, {"style": torch.tensor([2, 1])}, {"style": torch.rand(2, 3)}):
        assert torch.equal(net.predict(X, T, **given), plain)


def test_a_number_is_its_row_weights_are_mixtures_and_silence_is_the_usual():
    net, plain = operated(usual=(0.0, 0.5, 0.5), scale=1.0)
    rows = torch.eye(3)
    for k in range(3):
        by_number = net.predict(X, T, style=torch.full((2,), k))
        torch.testing.assert_close(net.predict(X, T, style=rows[k].expand(2, 3)), by_number)
        moved = copy.deepcopy(net)
        moved.time.layer.bias.data += net.styles.rows[k]  # a row is a bias of the time's embedding
        torch.testing.assert_close(PointDenoiser.predict(moved, X, T), by_number)
    torch.testing.assert_close(net.predict(X, T), net.predict(X, T, style=torch.tensor([[0.0, 0.5, 0.5]] * 2)))
    assert not torch.allclose(net.predict(X, T), plain)
    assert torch.equal(PointDenoiser.predict(net, X, T), plain)  # nothing is left of the calls before


def test_only_the_rows_that_were_asked_for_have_a_gradient():
    net, _ = operated()
    net.predict(X, T, style=torch.tensor([2, 2])).sum().backward()
    assert net.styles.rows.grad[:2].abs().max() == 0
    assert net.styles.rows.grad[2].abs().max() > 0


def test_a_network_without_a_known_time_is_refused():
    with pytest.raises(RecipeError, match="method.place"):
        learn_styles(PointDenoiser(width=8), [1.0], place="nowhere")
