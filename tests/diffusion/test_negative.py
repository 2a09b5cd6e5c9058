"""Negative conditions in attention: against the formula written out, limits, copies, refusals."""

import copy

import pytest
import torch
from attending import Attending

from limbeck.diffusion.negative import subtract
from limbeck.errors import RecipeError
from limbeck.models.toy import PointDenoiser

X, T = torch.tensor([[0.3, -1.0], [1.0, 0.2], [-0.4, 0.1]]), torch.tensor([0.2, 0.5, 1.0])
WANTED, NOT = torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0])


def operated():
    torch.manual_seed(0)
    model = Attending()
    subtract(model)
    return model


def by_hand(model, strength):
    h = (model.inputs(X) + model.time(T)).unsqueeze(1)
    for block in model.blocks:
        attention, q = block["attn2"], torch.tanh(h)
        plus, minus = (attention.heads(q, model.tokens(c)) for c in (WANTED, NOT))
        h = h + attention.to_out[0](plus - strength[:, None, None] * minus)
    return model.output(h.squeeze(1))


def test_it_is_the_published_formula_in_every_layer_with_gradients():
    model, strength = operated(), torch.tensor([0.0, 0.5, 1.0])
    found = model.predict(X, T, condition=WANTED, negative_condition=NOT, strength=strength)
    expected = by_hand(model, strength)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(v.square().sum(), model.words.weight)[0] for v in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_without_a_strength_or_at_none_nothing_changes():
    model = operated()
    plain = Attending.predict(model, X, T, condition=WANTED)
    assert torch.equal(model.predict(X, T, condition=WANTED), plain)
    none = model.predict(X, T, condition=WANTED, negative_condition=NOT, strength=torch.zeros(3))
    torch.testing.assert_close(none, plain)
    assert torch.equal(model.predict(X, T, condition=WANTED), plain)  # and nothing is left of the call before


def test_what_is_wanted_and_not_leaves_one_less_a_of_it():
    model = operated()
    attention = model.blocks[0]["attn2"]
    z = []
    attention.to_out[0].register_forward_pre_hook(lambda m, args: z.append(args[0]))
    model.predict(X, T, condition=WANTED)
    model.predict(X, T, condition=WANTED, negative_condition=WANTED, strength=torch.full((3,), 0.3))
    torch.testing.assert_close(z[-1], 0.7 * z[0])


def test_a_copy_is_its_own():
    model = operated()
    other = copy.deepcopy(model)
    before = model.predict(X, T, condition=WANTED, negative_condition=NOT, strength=T)
    with torch.no_grad():
        other.words.weight.add_(1.0)
    again = other.predict(X, T, condition=WANTED, negative_condition=NOT, strength=T)
    assert not torch.allclose(again, before)
    torch.testing.assert_close(model.predict(X, T, condition=WANTED, negative_condition=NOT, strength=T), before)


def test_samples_are_made_with_it():
    model = operated()
    z, given = torch.randn(3, 2), {"condition": WANTED}
    away = model.generate(z, given | {"negative_condition": NOT, "strength": torch.full((3,), 0.5)})
    assert not torch.allclose(away, model.generate(z, given))


def test_a_network_that_attends_to_nothing_is_refused():
    with pytest.raises(RecipeError, match="method.layers"):
        subtract(PointDenoiser(width=8, classes=3))
