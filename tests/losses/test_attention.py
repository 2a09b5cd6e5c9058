import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses.attention import attention_map, attention_transfer

FORMS = ["squared", "norm"]
inf, nan = math.inf, math.nan


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5), st.sampled_from([1.0, 2.0, 3.5]))
@settings(max_examples=40)
def test_it_is_the_formula_written_out_position_by_position(ours, theirs, size, power):
    s, t = features(2, ours, size, size), features(2, theirs, size, size, seed=1)

    def slow(x):
        q = [[sum(abs(v) ** power for v in x[:, i, j].tolist()) / len(x) for j in range(size)] for i in range(size)]
        flat = [v for row in q for v in row]
        return [v / math.sqrt(sum(v * v for v in flat)) for v in flat]

    for b in range(2):
        gaps = [(a - c) ** 2 for a, c in zip(slow(s[b]), slow(t[b]))]
        found = attention_transfer(s, t, power=power)[b].item()
        assert found == pytest.approx(sum(gaps) / size**2, rel=1e-9, abs=1e-15)
        found = attention_transfer(s, t, power=power, form="norm")[b].item()
        assert found == pytest.approx(math.sqrt(sum(gaps)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_what_changes_no_attention(form):
    s, t = features(3, 6, 4, 4), features(3, 5, 4, 4, seed=1)
    value = attention_transfer(s, t, form=form)
    torch.testing.assert_close(attention_transfer(1e-3 * s, 1e5 * t, form=form), value)
    torch.testing.assert_close(attention_transfer(-s, t, form=form), value)
    torch.testing.assert_close(attention_transfer(s[:, [3, 1, 0, 5, 4, 2]], t, form=form), value)
    rotation = torch.linalg.qr(features(6, 6, seed=2)).Q
    turned = torch.einsum("dc,bchw->bdhw", rotation, s)
    torch.testing.assert_close(attention_transfer(turned, t, form=form), value)  # power 2 only
    assert not torch.allclose(
        attention_transfer(turned, t, power=1, form=form), attention_transfer(s, t, power=1, form=form)
    )


def test_the_map_is_of_unit_length_and_equal_maps_are_exactly_zero_apart():
    x = features(4, 3, 5, 5)
    torch.testing.assert_close(attention_map(x).norm(dim=1), torch.ones(4).double())
    assert (attention_map(x) >= 0).all()
    for form in FORMS:
        assert attention_transfer(x.half(), x.half(), form=form).tolist() == [0.0] * 4


def test_the_norm_is_at_most_the_diagonal_of_a_square_and_squared_two_positions_shares():
    s, t = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    s[..., 0, 0], t[..., 1, 1] = 3.0, 0.1
    assert attention_transfer(s, t, form="norm").item() == pytest.approx(math.sqrt(2))
    assert attention_transfer(s, t).item() == pytest.approx(2 / 4)


def test_tokens_are_a_map_of_one_row_and_sizes_are_pooled_to_the_smaller():
    s, t = features(2, 3, 4, 4), features(2, 5, 4, 4, seed=1)
    tokens = [x.flatten(2).mT for x in (s, t)]
    torch.testing.assert_close(attention_transfer(*tokens), attention_transfer(s, t))
    torch.testing.assert_close(attention_transfer(tokens[0].mT, tokens[1].mT, dim=1), attention_transfer(s, t))
    large = features(2, 3, 8, 8, seed=3)
    torch.testing.assert_close(attention_transfer(large, t), attention_transfer(F.avg_pool2d(large, 2), t))
    torch.testing.assert_close(attention_transfer(t, large), attention_transfer(t, F.avg_pool2d(large, 2)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [nan, inf])
def test_masked_positions_are_as_if_they_were_not_there(form, bad):
    s, t = features(3, 6, 4), features(3, 6, 4, seed=1)  # six tokens of width four
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [False] * 6])
    holes = ~mask.unsqueeze(-1)
    s, t = (x.masked_fill(holes, bad).requires_grad_() for x in (s, t))
    values = attention_transfer(s, t, mask=mask, form=form, weight=torch.tensor([1.0, 2.0, bad]))
    torch.testing.assert_close(values[:1], attention_transfer(s[:1, :4], t[:1, :4], form=form))
    torch.testing.assert_close(values[1:2], 2 * attention_transfer(s[1:2], t[1:2], form=form))
    assert values[2].item() == 0
    for gradient in torch.autograd.grad(values.sum(), (s, t)):
        assert gradient[~mask].eq(0).all()
        assert gradient[mask].ne(0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [1.0, 2.0, 2.5])
def test_gradients_in_float64(form, power):
    s, t = features(2, 3, 2, 3).requires_grad_(), features(2, 2, 2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: attention_transfer(a, b, form=form, power=power), (s, t))
    mask = torch.tensor([[[True, False, True], [True] * 3], [[True] * 3] * 2])
    assert torch.autograd.gradcheck(lambda a, b: attention_transfer(a, b, form=form, mask=mask), (s, t))


@pytest.mark.parametrize("form", FORMS)
def test_a_sleeping_map_has_no_attention_and_no_gradient(form):
    s = torch.zeros(2, 3, 2, 2, requires_grad=True)
    values = attention_transfer(s, torch.ones(2, 1, 2, 2), form=form)
    torch.testing.assert_close(values, torch.full((2,), 0.25 if form == "squared" else 1.0))
    assert torch.autograd.grad(values.sum(), s)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_no_number_format_overflows(dtype):
    big = torch.finfo(dtype).max / 2
    s = (torch.ones(1, 2, 2, 2) * torch.tensor([[big, 0.0], [big / 4, 1.0]])).to(dtype).requires_grad_()
    value = attention_transfer(s, torch.ones(1, 1, 2, 2))
    q = torch.tensor([1.0, 0.0, 1 / 16, 0.0]) / math.sqrt(1 + 1 / 256)
    torch.testing.assert_close(value, (q - 0.5).square().mean()[None], rtol=1e-2, atol=1e-3)
    assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(RecipeError, match="power=0.5: needed is a number of at least 1"):
        attention_transfer(x, x, power=0.5)
    with pytest.raises(RecipeError, match="form 'cubed': there is squared and norm"):
        attention_transfer(x, x, form="cubed")
    with pytest.raises(RecipeError, match="attention transfer compares positions"):
        attention_transfer(torch.zeros(2, 3), torch.zeros(2, 3))
    assert losses.find("attention-transfer") is attention_transfer
