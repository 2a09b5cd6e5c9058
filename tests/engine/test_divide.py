"""The one division: gradients do not depend on how a batch was cut."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.engine.divide import Divider, NotOneKindError
from limbeck.engine.processes import World
from limbeck.objectives import Loss

torch.manual_seed(0)


def batch_of(n: int, length: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    keep = torch.rand(n, length, generator=g) < torch.linspace(0.9, 0.1, n).unsqueeze(
        1
    )  # ragged: the last rows are short
    keep[0, 0] = True
    return {
        "x": torch.randn(n, length, 3, generator=g),
        "y": torch.randn(n, length, generator=g),
        "mask": keep,
        "id": torch.arange(n),
    }


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def gradient(make, n=13, pieces=1, dropout=False, **kw):
    model = net()
    if dropout:
        model.insert(2, nn.Dropout(0.5))
    divide = Divider(World(), nullcontext)
    taken = divide(make(model), batch_of(n), list(model.parameters()), pieces=pieces, **kw)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), taken


def squared(model, batch):
    return (model(batch["x"]).squeeze(-1) - batch["y"]) ** 2


LOSSES = {
    "no mask": lambda m: lambda b: Loss.mean("a", squared(m, b)),
    "mask is a column": lambda m: (
        lambda b: Loss.mean("a", squared(m, b), b["mask"]) + 0.5 * Loss.mean("b", m(b["x"]).abs().sum((1, 2)))
    ),
    "one part, made mask": lambda m: lambda b: Loss.mean("a", squared(m, b), b["mask"] & (b["y"] > -1)),
    "two parts, made mask": lambda m: (
        lambda b: (
            Loss.mean("a", squared(m, b), b["mask"] & (b["y"] > -1))
            + 2.0 * Loss.mean("b", m(b["x"]).squeeze(-1).abs(), b["y"] > 0.3)
        )
    ),
    "batch scope": lambda m: (
        lambda b: (
            Loss.mean("a", squared(m, b), b["y"] > 0)
            + 0.3 * Loss.batch("c", contrast, z=m(b["x"]).squeeze(-1), y=b["y"])
        )
    ),
    "float mask": lambda m: lambda b: Loss.mean("a", squared(m, b), b["y"].abs()),
}


def contrast(z, y):
    return -(z @ y.T).log_softmax(-1).diagonal()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("pieces", [2, 4, 8, 13, 50])
def test_gradients_and_values_are_those_of_the_uncut_batch(name, pieces):
    whole, taken = gradient(LOSSES[name])
    cut, cut_taken = gradient(LOSSES[name], pieces=pieces)
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))
    for part, value in taken.values.items():
        assert float(cut_taken.values[part]) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_piece_is_plain_autograd_of_the_written_out_loss(name):
    model = net()
    loss = LOSSES[name](model)(batch_of(13)).total()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    got, _ = gradient(LOSSES[name])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_a_naive_mean_of_means_would_be_wrong_here():
    """The test data are ragged enough to tell: otherwise the tests above would prove nothing."""
    model, batch = net(), batch_of(13)
    whole = ((squared(model, batch) * batch["mask"]).sum() / batch["mask"].sum()).item()
    halves = [{k: v[:6] for k, v in batch.items()}, {k: v[6:] for k, v in batch.items()}]
    naive = sum(((squared(model, b) * b["mask"]).sum() / b["mask"].sum()).item() for b in halves) / 2
    assert abs(naive - whole) / whole > 1e-3  # a thousand times the tolerance of the tests above


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), pieces=st.integers(1, 9), name=st.sampled_from(sorted(LOSSES)))
def test_any_size_and_any_cut(n, pieces, name):
    whole, _ = gradient(LOSSES[name], n=n)
    cut, _ = gradient(LOSSES[name], n=n, pieces=pieces)
    torch.testing.assert_close(cut, whole, rtol=2e-5, atol=1e-6 * max(1.0, float(whole.abs().max())))


def test_dropout_is_replayed_in_the_second_pass_and_the_generator_ends_where_one_pass_would():
    torch.manual_seed(3)
    first, _ = gradient(LOSSES["two parts, made mask"], pieces=4, dropout=True)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    model = net()
    model.insert(2, nn.Dropout(0.5))
    torch.manual_seed(1)  # net() seeds with 1, and so does gradient(): draw the same masks by hand
    batch, parts = batch_of(13), []
    edges = [13 * i // 4 for i in range(5)]
    for low, high in itertools.pairwise(edges):
        parts.append(LOSSES["two parts, made mask"](model)({k: v[low:high] for k, v in batch.items()}))
    total = sum(
        p.weight * sum(q.parts[name].sum for q in parts) / sum(q.parts[name].count for q in parts)
        for name, p in parts[0].parts.items()
    )
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    assert first.shape == expected.shape
    assert after.shape == torch.get_rng_state().shape


def test_nothing_counted_gives_zero_and_no_nan():
    def make(model):
        return lambda b: (
            Loss.mean("a", squared(model, b), torch.zeros_like(b["mask"])) + Loss.mean("b", squared(model, b))
        )

    got, taken = gradient(make, pieces=3)
    plain, _ = gradient(lambda m: lambda b: Loss.mean("b", squared(m, b)), pieces=3)
    assert float(taken.values["a"]) == 0.0
    torch.testing.assert_close(got, plain)


def test_masked_out_infinities_do_not_reach_the_gradient():
    def make(model):
        def loss(b):
            values = squared(model, b)
            values = torch.where(b["mask"], values, torch.full_like(values, torch.inf))
            return Loss.mean("a", values, b["mask"])

        return loss

    got, _ = gradient(make, pieces=2)
    assert torch.isfinite(got).all()


def test_records_are_joined_in_order():
    def make(model):
        def loss(b):
            found = Loss.mean("a", squared(model, b))
            found.record["id"] = b["id"]
            return found

        return loss

    _, taken = gradient(make, pieces=4)
    assert taken.record["id"].tolist() == list(range(13))


def test_parts_that_come_and_go_with_the_samples_are_refused():
    def make(model):
        return lambda b: Loss.mean("a" if b["id"][0] == 0 else "b", squared(model, b))

    with pytest.raises(NotOneKindError, match="may not come and go"):
        gradient(make, pieces=2)


def test_gradient_of_each_part_sums_to_the_whole():
    whole, taken = gradient(LOSSES["two parts, made mask"], pieces=3, per_part=True)
    rows = [torch.cat([g.flatten() for g in found]) for found in taken.per_part.values()]
    torch.testing.assert_close(sum(rows), whole, rtol=1e-5, atol=1e-7)


def test_a_parameter_inside_a_batch_scope_function_gets_its_whole_gradient_once():
    def run(pieces):
        model, heat = net(), nn.Parameter(torch.tensor(1.3))

        def loss(b):
            return Loss.batch(
                "c", lambda z, y: -(heat * z @ y.T).log_softmax(-1).diagonal(), z=model(b["x"]).squeeze(-1), y=b["y"]
            )

        Divider(World(), nullcontext)(loss, batch_of(9), [*model.parameters(), heat], pieces=pieces)
        return heat.grad

    torch.testing.assert_close(run(3), run(1))


def test_learnable_weights_of_parts_get_the_parts_mean_as_gradient():
    def run(pieces):
        model, weight = net(), nn.Parameter(torch.tensor(0.7))

        def loss(b):
            return weight * Loss.mean("a", squared(model, b), b["y"] > 0) + weight**2 * Loss.batch(
                "c", contrast, z=model(b["x"]).squeeze(-1), y=b["y"]
            )

        taken = Divider(World(), nullcontext)(loss, batch_of(9), [*model.parameters(), weight], pieces=pieces)
        return weight.grad, taken.values

    grad, values = run(1)
    torch.testing.assert_close(grad, (values["a"] + 1.4 * values["c"]).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run(4)[0], grad, rtol=1e-5, atol=1e-6)


def test_half_precision_gradients_are_summed_in_fp32():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    batch = {"x": torch.cat([torch.full((1,), 256.0), torch.ones(255)]).bfloat16(), "id": torch.arange(256)}
    taken = Divider(World(), nullcontext)(lambda b: Loss.mean("a", b["x"] * weight), batch, [weight], pieces=256)
    assert float(taken.values["a"]) == pytest.approx(511 / 256)
    # In bf16 256 + 1 = 256, so that a sum of pieces in bf16 stays at 1.0; in fp32 it is 511 / 256, rounded once.
    assert float(weight.grad) == pytest.approx(511 / 256, rel=4e-3)


def test_a_loss_that_depends_on_nothing_that_learns_is_refused():
    with pytest.raises(RuntimeError, match="does not depend on any parameter"):
        gradient(lambda m: lambda b: Loss.mean("a", b["y"] ** 2))


def test_one_number_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match='scope="batch"'):
        Loss.mean("gap", torch.tensor(1.0))
