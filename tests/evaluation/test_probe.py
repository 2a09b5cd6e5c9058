"""The linear probe: logistic regression as it is defined, features of noisy rows, a choice on validation only, nothing left behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.errors import RecipeError
from limbeck.evaluation.probe import Linear, probe
from limbeck.models.toy import PictureDenoiser, PointDenoiser
from limbeck.randomness import fold, normal


@settings(max_examples=6, deadline=None)
@given(classes=st.integers(2, 4), penalty=st.sampled_from([0.1, 1.0, 20.0]), seed=st.integers(0, 9))
def test_the_classifier_is_where_the_penalised_likelihood_has_no_slope(classes, penalty, seed):
    """sum_i (p_i - y_i) x_i + penalty W = 0 and sum_i (p_i - y_i) = 0, x standardised; two classes share one vector w, -w is 0."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(40) % classes
    raw = torch.randn(40, 3, generator=g).double() * torch.tensor([1.0, 5.0, 0.1]) + 0.7 * label[:, None]
    fitted = Linear(raw, label, penalty)
    x = (raw - raw.mean(0)) / raw.std(0, correction=0)
    p, y = fitted.probabilities(raw), torch.eye(classes).double()[label]
    W = torch.from_numpy(fitted.model.coef_)
    slope = (p - y).T @ x
    slope, off = (slope[1:], (p - y)[:, 1:]) if classes == 2 else (slope, p - y)
    torch.testing.assert_close(slope + penalty * W, torch.zeros_like(W), atol=2e-3, rtol=0)
    torch.testing.assert_close(off.sum(0), torch.zeros(off.shape[1]).double(), atol=2e-3, rtol=0)


def test_with_a_feature_that_is_a_group_it_says_the_share_of_each_group():
    """Without a penalty a model with a parameter for every cell has the frequencies: the closed form."""
    group = torch.tensor([0.0] * 10 + [1.0] * 10)[:, None]
    label = torch.tensor([1] * 3 + [0] * 7 + [1] * 8 + [0] * 2)
    p = Linear(group, label, penalty=1e-9).probabilities(torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(p[:, 1], torch.tensor([0.3, 0.8]).double(), atol=1e-4, rtol=0)


def test_scales_shifts_and_constant_features_do_not_matter():
    g = torch.Generator().manual_seed(0)
    label = torch.arange(30) % 3
    x = torch.randn(30, 4, generator=g) + label[:, None]
    plain = Linear(x, label).probabilities(x)
    other = torch.cat([x * torch.tensor([1e-3, 2.0, 50.0, 1.0]) - 7, torch.full((30, 1), 3.0)], 1)
    torch.testing.assert_close(Linear(other, label).probabilities(other), plain, atol=1e-4, rtol=1e-4)
    with pytest.raises(RecipeError, match="one class"):
        Linear(x, torch.zeros(30).long())


class Staged(DiffusionNetwork):
    """`clear` gives the first coordinate, `blurred` nothing of it at all but the noise level; counts how it is called."""

    def __init__(self, noise="flow"):
        super().__init__(noise, "x0", shape=[2])
        self.clear, self.blurred = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.clear.weight.copy_(torch.tensor([[1.0, 0.0]]))
            self.blurred.weight.copy_(torch.tensor([[0.0, 1.0]]))
        self.seen = []

    def predict(self, x, t, **given):
        self.seen.append((x, t, self.training, torch.is_grad_enabled()))
        return x + 0 * (self.clear(x) + self.blurred(x))


def rows(count, first, seed):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (count,), generator=g)
    x = torch.stack([2.0 * label - 1, torch.randn(count, generator=g)], 1)
    return TensorSplit({"x": x, "label": label}, first)


def data():
    splits = {"train": rows(60, 0, 1), "validation": rows(40, 100, 2), "test": rows(50, 200, 3)}
    return Data(splits, {"x": "", "label": ""}, {"label": ["a", "b"]}, source="rows")


def test_it_finds_the_layer_that_knows_and_the_time_at_which_it_does():
    network = Staged()
    found = probe(network, data(), ["blurred", "clear"], [0.95, 0.02, 0.5])
    assert found == {"layer": "clear", "time": 0.02, "validation": 1.0, "test": 1.0}
    noisy = probe(network, data(), ["blurred"], [0.02])
    assert set(noisy) == {"layer", "time", "validation", "test"}
    assert noisy["validation"] < 0.8
    equals = probe(network, data(), ["clear"], [0.03, 0.02])  # both are perfect
    assert equals["time"] == 0.03


def test_validation_chooses_and_test_is_only_looked_at_afterwards():
    """With labels of validation that say the opposite, the worst layer is chosen; the test's labels change nothing but its figure."""
    given_ = data()
    given_.splits["validation"].tensors["label"] = 1 - given_.splits["validation"].tensors["label"]
    found = probe(Staged(), given_, ["clear", "blurred"], [0.02])
    assert found["layer"] == "blurred"
    other = data()
    other.splits["test"].tensors["label"] = 1 - other.splits["test"].tensors["label"]
    assert probe(Staged(), other, ["blurred", "clear"], [0.02]) == {"layer": "clear", "time": 0.02, "validation": 1.0, "test": 0.0}  # fmt: skip


def test_rows_are_noised_by_their_own_numbers_in_eval_mode_without_a_graph_and_in_any_batches():
    network = Staged().train()
    state = torch.get_rng_state()
    whole = probe(network, data(), ["clear"], [0.6])
    assert torch.equal(torch.get_rng_state(), state)
    x, t, training, graph = network.seen[0]
    train = data()["train"].tensors
    eps = normal(fold(train["id"], 0x70), 2)
    torch.testing.assert_close(x, 0.4 * train["x"] + 0.6 * eps)
    assert (t == 0.6).all()
    assert not training
    assert not graph
    assert network.training
    assert not network.clear._forward_hooks
    assert probe(network, data(), ["clear"], [0.6], batch_size=7) == whole
    assert probe(Student(network, view=["x"]), data(), ["clear"], [0.6]) == whole


def test_maps_are_pooled_and_several_layers_are_heard_in_one_pass():
    torch.manual_seed(0)
    network = PictureDenoiser(width=8)
    g = torch.Generator().manual_seed(0)

    def split(count, first):
        label = torch.arange(count) % 2
        x = torch.randn(count, 1, 8, 8, generator=g) * 0.3 + (2.0 * label - 1)[:, None, None, None]
        return TensorSplit({"image": x, "label": label}, first)

    pictures = Data({"train": split(24, 0), "validation": split(12, 50), "test": split(12, 80)}, source="pictures")
    calls = []
    network.inputs.register_forward_hook(lambda *a: calls.append(1))
    found = probe(network, pictures, ["inner.1", "down", "up:input"], [0.2])
    assert found["validation"] == found["test"] == 1.0  # brightness is easily told
    assert len(calls) == 3  # one batch of each split


def test_the_network_is_not_shown_the_class_that_it_is_to_tell():
    """A network whose features are its label's embedding alone: with the label dropped nothing is left to go by."""

    class Labelled(PointDenoiser):
        def predict(self, x, t, **given):
            return x + 0 * self.label(given["condition"]).sum(1, keepdim=True)

    torch.manual_seed(0)
    found = probe(Labelled(width=8, classes=2), data(), ["label"], [0.1])
    assert found["test"] < 0.7

    class Always(DiffusionNetwork):
        conditions = "class"

    with pytest.raises(RecipeError, match="cannot do without its condition"):
        probe(Always("flow", "x0", shape=[2]), data(), ["label"], [0.1])


def test_what_is_missing_is_said():
    network = Staged()
    with pytest.raises(RecipeError, match="no such place"):
        probe(network, data(), ["clear", "cleer"], [0.1])
    assert not network.clear._forward_hooks
    with pytest.raises(RecipeError, match="at least one layer"):
        probe(network, data(), [], [0.1])
    with pytest.raises(RecipeError, match="column 'kind'"):
        probe(network, data(), ["clear"], [0.1], target="kind")
    untested = Data({name: split for name, split in data().splits.items() if name != "test"})
    before = len(network.seen)
    with pytest.raises(RecipeError, match="no split 'test'"):
        probe(network, untested, ["clear"], [0.1])
    assert len(network.seen) == before  # nothing was begun
