"""Actors as denoisers: their manner, their taps, other schedules, guidance, and low-rank critics on shared weights."""

import pytest
import torch
from torch import nn

from limbeck.actors import Actor, Student, Teacher
from limbeck.diffusion.denoiser import Denoiser, copied, with_lora
from limbeck.diffusion.noise import VE, VP, Flow, wide
from limbeck.errors import RecipeError
from limbeck.models.toy import Mixture, PointDenoiser, ring


def test_it_says_what_its_network_says_and_leaves_the_view_alone():
    student = Student(PointDenoiser(width=8, classes=2), view=["x", "label"])
    view, x, t = student.view, torch.randn(3, 2), torch.rand(3)
    given = {"condition": torch.tensor([0, 1, 1])}
    said = Denoiser(student)(x, t, given)
    torch.testing.assert_close(said.x0, student.model.prediction(x, t, given).x0)
    assert student.view is view
    with pytest.raises(RecipeError, match="cannot be guided"):
        Denoiser(Student(PointDenoiser(width=8)))(x, t, guidance=2.0)


@pytest.mark.parametrize(("mode", "reaches"), [("frozen", False), ("through", True)])
def test_a_teacher_keeps_its_manner(mode, reaches):
    teacher = Teacher(ring())
    teacher.mode = mode
    x = torch.randn(3, 2, requires_grad=True)
    assert Denoiser(teacher)(x, torch.rand(3)).value.requires_grad is reaches


@pytest.mark.parametrize("own", [VP(), VE(), Flow(shift=3)], ids=["vp", "ve", "flow"])
def test_a_network_answers_in_the_times_of_another_schedule(own):
    """The same mixture under two schedules is the same denoiser at the same sigma / alpha."""
    spoken = Flow()
    here = Denoiser(Teacher(ring(noise=own)), spoken)
    x, t = torch.randn(5, 2), torch.tensor([0.02, 0.3, 0.5, 0.8, 0.95])
    expected = ring(noise=spoken).prediction(x, t, {})
    found = here(x, t)
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.epsilon, (x - wide(1 - t, x) * found.x0) / wide(t, x))


def test_guidance_scales_and_negative_conditions():
    model = Mixture([[-1.0, 0], [1.0, 0], [0, 1]], 0.3, labels=[0, 1, 2])
    d = Denoiser(Teacher(model))
    x, t = torch.randn(4, 2), torch.rand(4)
    c, other = ({"condition": torch.full((4,), i)} for i in (0, 2))
    plain, nothing = d(x, t, c).x0, d(x, t, c, drop=torch.ones(4, dtype=torch.bool)).x0
    torch.testing.assert_close(d(x, t, c, guidance=2.5).x0, nothing + 2.5 * (plain - nothing))
    steered = d(x, t, c, guidance=2.5, instead=other).x0
    torch.testing.assert_close(steered, d(x, t, other).x0 + 2.5 * (plain - d(x, t, other).x0))
    torch.testing.assert_close(d(x, t, c, guidance=3.0, instead=c).x0, plain)


def test_taps_hear_the_conditional_call_and_features_end_the_pass():
    student = Student(PointDenoiser(width=8, classes=2), view=["x", "label"], taps={"hint": "hidden.0"})
    d, x, t = Denoiser(student), torch.randn(3, 2), torch.rand(3)
    given = {"condition": torch.tensor([0, 1, 0])}
    d(x, t, given)
    plain = d.heard["hint"]
    d(x, t, given, guidance=2.0)
    assert torch.equal(d.heard["hint"], plain)
    ran = []
    student.model.output.register_forward_hook(lambda *a: ran.append(1))
    assert torch.equal(d.feature("hint", x, t, given), plain)
    assert not ran


def test_what_it_is_shown_comes_through_the_actors_own_view():
    student = Student(PointDenoiser(width=8, classes=3), view={"keys": ["points"], "named": {"condition": "kind"}})
    batch = {"points": torch.randn(2, 2), "kind": torch.tensor([2, 0])}
    x, given = Denoiser(student).shown(batch)
    assert x is batch["points"]
    assert given == {"condition": batch["kind"]}
    assert Denoiser(student).shown(batch, data=False)[0] is None


def test_another_kind_of_network_is_refused():
    with pytest.raises(RecipeError, match="limbeck.diffusion.network:Plain"):
        Denoiser(Student(nn.Linear(2, 2)))


def test_a_copy_is_another_network_with_the_same_weights():
    student = Student(PointDenoiser(width=8))
    other = copied(student)
    assert other.model is not student.model
    for a, b in zip(student.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


def test_low_rank_updates_stand_beside_shared_weights_and_begin_at_nothing():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    teacher = Teacher(PointDenoiser(width=8))
    for p in teacher.model.parameters():
        p.requires_grad_(False)
    teacher.model.inputs.weight.requires_grad_(True)
    critic, own = with_lora(teacher, rank=2)
    x, t = torch.randn(4, 2), torch.rand(4)
    said = Denoiser(teacher)(x, t).x0
    assert torch.equal(Denoiser(critic)(x, t).x0, said)
    assert [p.requires_grad for p in teacher.model.parameters()].count(True) == 1  # as it was found
    shared = {p.data_ptr() for p in teacher.model.parameters()}
    assert all(p.data_ptr() not in shared for p in own)
    assert sum(p.data_ptr() in shared for p in critic.model.parameters()) == len(shared)
    with torch.no_grad():
        for p in own:
            p.add_(0.1)
    assert not torch.equal(Denoiser(critic)(x, t).x0, said)
    assert torch.equal(Denoiser(teacher)(x, t).x0, said)
    with pytest.raises(RecipeError, match="nowhere"):
        with_lora(Actor(PointDenoiser(width=8)), 2, targets=["nowhere"])
