import math

import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.sketches import Sketch

LOGITS = 2 * torch.randn(2, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_what_it_holds():
    """The classes that are known, and none that an empty entry stands for."""
    sketch = Sketch(torch.tensor([[3, 1, 0]]), torch.tensor([[-0.1, -3.0, -math.inf]]), torch.tensor([-4.0]), 9)
    assert [bool(sketch.holds(torch.tensor([c]))) for c in range(4)] == [False, True, False, True]
    top = Sketch.top(LOGITS, 4)
    assert torch.equal(top.holds(top.ids[..., 3]), torch.ones(2, 3, dtype=torch.bool))
    assert not top.holds(LOGITS.argmin(-1)).any()


def test_the_most_probable_and_the_mass_of_the_others():
    sketch = Sketch.top(LOGITS, 4)
    p = LOGITS.softmax(-1).sort(-1, descending=True).values
    torch.testing.assert_close(sketch.log_probs.exp(), p[..., :4])
    torch.testing.assert_close(sketch.log_tail.exp(), p[..., 4:].sum(-1))
    torch.testing.assert_close(sketch.total(), torch.ones(2, 3, dtype=torch.float64))
    assert sketch.shape == (2, 3, 9)


def test_expanded_it_has_the_known_and_an_even_rest():
    sketch = Sketch.top(LOGITS, 4)
    whole = sketch.expand()
    torch.testing.assert_close(whole.gather(-1, sketch.ids), sketch.log_probs)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    rest = whole.scatter(-1, sketch.ids, math.nan)
    for row in rest.flatten(0, 1):
        assert len(set(row[~row.isnan()].tolist())) == 1
    torch.testing.assert_close(Sketch.top(LOGITS, 20).expand(), LOGITS.log_softmax(-1))
    assert torch.isneginf(Sketch.top(LOGITS, 9).log_share).all()


def test_an_entry_that_stands_for_nothing_hides_no_class():
    sketch = Sketch(
        torch.tensor([[0, 0]]), torch.tensor([[math.log(0.4), -math.inf]]), torch.tensor([math.log(0.6)]), 4
    )
    torch.testing.assert_close(sketch.expand().exp(), torch.tensor([[0.4, 0.2, 0.2, 0.2]]))


def test_a_small_rest_is_summed_and_not_subtracted():
    logits = torch.zeros(1000)
    logits[0] = 40.0
    assert abs(Sketch.top(logits, 1).log_tail.item() - (math.log(999) - 40)) < 1e-5


def test_every_class_is_drawn_about_as_often_as_it_is_probable():
    p = LOGITS.softmax(-1)
    starts = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    drawn = Sketch.drawn(LOGITS.expand(2000, 2, 3, 9), 5, starts[:, None, None].expand(2000, 2, 3))
    torch.testing.assert_close(drawn.expand().exp().mean(0), p, atol=1e-3, rtol=0)  # unbiased
    assert ((drawn.expand().exp() - p).abs() < 1 / 5 + 1e-9).all()  # and never a whole draw off
    torch.testing.assert_close(drawn.total(), torch.ones(2000, 2, 3, dtype=torch.float64))
    assert torch.isneginf(drawn.log_tail).all()


@pytest.mark.parametrize("start", [0.0, 1 - 2**-24])
def test_the_ends_of_the_starts(start):
    drawn = Sketch.drawn(LOGITS, 5, torch.full((2, 3), start))
    torch.testing.assert_close(drawn.total(), torch.ones(2, 3, dtype=torch.float64))


def test_checked():
    sketch = Sketch.top(LOGITS, 4)
    assert sketch.checked() is sketch
    cut = Sketch(sketch.ids, sketch.log_probs, torch.full_like(sketch.log_tail, -math.inf), 9)
    with pytest.raises(RecipeError, match="cut off"):
        cut.checked()
    with pytest.raises(RecipeError, match="are they logits"):
        Sketch(sketch.ids, LOGITS[..., :4], sketch.log_tail, 9).checked()
    with pytest.raises(RecipeError, match="there are 3"):
        Sketch(sketch.ids, sketch.log_probs, sketch.log_tail, 3).checked()
    nothing = Sketch(sketch.ids, torch.full_like(sketch.log_probs, -math.inf), cut.log_tail, 9)
    assert nothing.checked() is nothing  # positions without an answer are fine


def test_a_part_of_it_and_elsewhere():
    sketch = Sketch.top(LOGITS, 4)
    assert sketch[:, 1:].shape == (2, 2, 9)
    assert sketch[0, 2].shape == (9,)
    assert sketch.to("meta").log_tail.device.type == "meta"
