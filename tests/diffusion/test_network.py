"""Networks that know their noise: generating without a time, noise by row, sampling as it was set, and a user's own module."""

import pytest
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.diffusion.network import Plain, Sampling, sample_with
from limbeck.errors import RecipeError
from limbeck.models.toy import Mixture, PointDenoiser, ring
from limbeck.randomness import fold, normal
from limbeck.sources import operate, rebuild, save_weights


def test_without_a_time_it_generates_from_the_noise_of_the_row():
    model = ring(noise="flow")
    ids = torch.tensor([7, 3, 900])
    made = model(torch.zeros(3, 2), id=ids)["generated"]
    expected = model.generate(normal(fold(ids, 0x6E), 2), {})
    assert torch.equal(made, expected)
    assert torch.equal(model(torch.ones(3, 2), id=ids)["generated"], made)  # what stands in x is not looked at
    assert torch.equal(model(torch.zeros(1, 2), id=ids[1:2])["generated"], made[1:2])  # nor the neighbours


def test_without_numbers_the_bits_of_the_data_decide():
    model, x = ring(noise="ve"), torch.randn(4, 2)
    made = model(x)["generated"]
    torch.testing.assert_close(model(x.flip(0))["generated"], made.flip(0))
    assert made.unique(dim=0).shape[0] == 4
    with pytest.raises(RecipeError, match="shape"):
        Plain(nn.Identity(), "flow", "x0")()


def test_many_steps_land_on_the_ring_and_one_step_in_its_middle():
    model = ring(std=0.02)
    ids = torch.arange(200)
    sample_with(model, steps=50, solver="heun")
    apart = torch.cdist(model(id=ids)["generated"], model.means).min(1).values
    assert float(apart.median()) < 0.05
    sample_with(model, steps=1)
    assert float(model(id=ids)["generated"].norm(dim=1).max()) < 1e-5  # E[x0 | pure noise] is the mean


def test_guided_sampling_keeps_to_its_class():
    model = Mixture([[-1.0, 0], [1.0, 0]], 0.1, labels=[0, 1])
    sample_with(model, steps=20, guidance=3.0)
    assert model.sampling.evaluations == 40
    label = torch.arange(50) % 2
    made = model(condition=label, id=torch.arange(50))["generated"]
    assert torch.equal((made[:, 0] > 0).long(), label)


@pytest.mark.parametrize("solver", ["renoise", "ddim"])
def test_stochastic_samples_do_not_depend_on_their_neighbours(solver):
    torch.manual_seed(0)
    model, ids = PointDenoiser(width=8), torch.arange(6)
    sample_with(model, steps=3, solver=solver, eta=0.5 if solver == "ddim" else 0.0)
    whole = model(id=ids)["generated"]
    torch.testing.assert_close(model(id=ids[2:4])["generated"], whole[2:4])


def test_how_it_samples_ships_with_the_student(tmp_path):
    student = Student(PointDenoiser(width=8))
    operate(student.source, "limbeck.diffusion.network:sample_with", {"steps": 2, "solver": "renoise"})
    save_weights(student.model, tmp_path / "model.safetensors")
    import json

    (tmp_path / "limbeck.json").write_text(json.dumps({"surgery": student.source.surgery}))
    again = PointDenoiser(width=8)
    rebuild(again, tmp_path)
    assert again.sampling == Sampling(steps=2, solver="renoise")
    ids = torch.arange(5)
    assert torch.equal(again(id=ids)["generated"], student.model(id=ids)["generated"])


class Own(nn.Module):
    def __init__(self, gain=2.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, time, label=None):
        self.seen = time
        return self.gain * x + (0 if label is None else label[:, None])


def test_somebodys_own_module_is_fed_as_its_schedule_says():
    model = Plain(Own(), "vp", "epsilon", shape=[2], classes=4)
    x = torch.randn(3, 2)
    said = model(
        x, torch.tensor([0, 1, 2]), time=torch.tensor([1.0, 10.0, 1000.0]), drop=torch.tensor([False, False, True])
    )
    assert model.network.seen.tolist() == [0, 9, 999]
    torch.testing.assert_close(said["prediction"], 2 * x + torch.tensor([[0.0], [1], [4]]))


def test_somebodys_own_module_by_its_address(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x, time):\n        return super().forward(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    args = {
        "network": "own_nets:Net",
        "args": {"in_features": 2, "out_features": 2},
        "noise": "flow",
        "head": "velocity",
    }
    student = Student("limbeck.diffusion.network:Plain", args=args)
    assert student({"x": torch.zeros(2, 2), "id": torch.arange(2)})["generated"].shape == (2, 2)


def test_edm_networks_are_shown_inputs_of_unit_variance():
    model = Plain(Own(1.0), "ve", "edm", data_std=0.5)
    x = torch.randn(2, 3)
    found = model.prediction(x, torch.tensor([3.0, 0.1]), {})
    sigma = torch.tensor([[3.0], [0.1]])
    torch.testing.assert_close(found.value, x / (sigma**2 + 0.25).sqrt())
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(found.x0, skip * x + out * found.value)


def test_half_precision_is_left_at_the_door():
    model = PointDenoiser(width=8).to(torch.bfloat16)
    found = model.prediction(torch.randn(3, 2), torch.full((3,), 0.5), {})
    assert found.value.dtype == found.x0.dtype == torch.float32


def test_a_network_that_was_always_told_cannot_be_asked_without():
    model = PointDenoiser(width=8)
    with pytest.raises(RecipeError, match="cannot be guided"):
        model(torch.zeros(1, 2), time=torch.tensor([0.5]), drop=torch.tensor([True]))


def test_views_by_the_usual_names():
    assert ring().view_for(["x", "other"]) == {"keys": ["x"], "named": {"id": "id"}}
    classes = PointDenoiser(width=8, classes=2)
    assert classes.view_for(["image", "label"]) == {"keys": ["image"], "named": {"id": "id", "condition": "label"}}
    assert classes.view_for(["image"]) is None
    assert classes.view_for(["label"]) == {"named": {"id": "id", "condition": "label"}}


def test_noise_that_leaves_nothing_cannot_be_begun_from_with_an_epsilon_head():
    model = PointDenoiser(width=8, noise="flow", head="epsilon")
    with pytest.raises(RecipeError, match="start=0.999"):
        model(id=torch.arange(2))
    sample_with(model, start=0.999)
    assert torch.isfinite(model(id=torch.arange(2))["generated"]).all()


class Bursting(nn.Module):
    """Says nothing that is a number below a time."""

    def forward(self, x, time):
        return x / (time[:, None] > 0.6)


def test_samples_that_are_not_finite_are_said_with_whose_network_and_which_step():
    model = Plain(Bursting(), "flow", "velocity", shape=[2])
    sample_with(model, steps=4)
    model.whose = "teacher"
    with pytest.raises(FloatingPointError, match=r"step 3 of 4 \(time 0.5\), the teacher \(Plain\): its velocity"):
        model(id=torch.arange(3))


def test_what_is_decoded_of_finite_samples_is_looked_at_too():
    model = PointDenoiser(width=8)
    model.decoded = lambda x: x / 0
    with pytest.raises(
        FloatingPointError, match="samples of the network .PointDenoiser. are finite, and what is decoded"
    ):
        model(id=torch.arange(3))
