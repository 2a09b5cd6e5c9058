import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, finished, keep, paired, widened


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_everything_but_float64_is_computed_in_float32(given, computed):
    assert widened(torch.zeros(2, dtype=given)).dtype == computed


def test_a_pair_is_as_wide_as_the_wider_one_and_never_broadcast():
    assert [x.dtype for x in paired(torch.zeros(2).half(), torch.zeros(2).double())] == [torch.float64] * 2
    with pytest.raises(RecipeError, match="compares equal shapes"):
        paired(torch.zeros(2, 1), torch.zeros(2))


def test_only_leading_dimensions_are_aligned():
    assert aligned(torch.zeros(3), torch.Size([3, 3, 5]), "mask").shape == (3, 1, 1)
    for wrong in (torch.zeros(5), torch.zeros(()), torch.zeros(3, 5), torch.zeros(3, 3, 5, 1)):
        with pytest.raises(RecipeError, match=r"needed is \[3, 3, 5\], or the first dimensions"):
            aligned(wrong, torch.Size([3, 3, 5]), "mask")


def test_keep_takes_a_mask_without_the_class_dimension():
    x = torch.ones(2, 3, 4)
    kept = keep(x, torch.tensor([[True, False, True, False], [False] * 4]), 1)
    assert kept.sum((1, 2)).tolist() == [6.0, 0.0]
    assert keep(x, None, 1) is x


def test_finished_without_mask_and_weight_is_the_values():
    values = torch.tensor([1.0, 2.0])
    assert finished(values, None, None) is values
    assert finished(values, None, torch.tensor([3, 0])).tolist() == [3.0, 0.0]
