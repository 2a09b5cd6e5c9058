"""What all methods with a critic share: the same game of a discriminator, what is drawn for it, low-rank critics and their scale, refusals."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from points import in_double, network, settled, situation

from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.methods.dmd2 import DMD2
from limbeck.methods.sid import SiD
from limbeck.methods.sim import SIM
from limbeck.methods.tdm import TDM
from limbeck.methods.vsd import VSD

KINDS = {
    "dmd2": DMD2,
    "vsd": lambda **options: VSD(**{"guidance": 1.5} | options),
    "sid": lambda **options: SiD(times=[0.3, 0.8], **options),
    "sim": lambda **options: SIM(times=[0.3, 0.8], **options),
    "tdm": lambda **options: TDM(**{"guidance": 1.5, "sampling_steps": 2} | options),
}


def ready(method, where):
    """A batch as both updates have it."""
    batch = settled(method, where)
    batch |= method.inputs(batch)
    made = method.made(batch)
    torch.manual_seed(7)
    return method.for_student(batch) | method.for_critic(batch, made)


@pytest.mark.parametrize("name", KINDS)
def test_the_game_is_the_same_beside_every_way_of_matching(name):
    """Student: matching + 0.3 softplus(-H). Critic: its error + 0.2 (softplus(H(fake)) + softplus(-H(real))). The gradients too."""
    with in_double():
        where = situation(network(), student=network())
        method = KINDS[name](gan_weight=0.3, critic_gan_weight=0.2)
        batch = ready(method, where)
        given, x0 = method.given(batch, "critic"), method.generated(batch)

        def judged(x, kind):
            t = batch[f"{kind}_time"]
            x_t = (1 - t[:, None]) * x + t[:, None] * batch[f"{kind}_noise"]
            return method.judge(x_t, t, given)

        expected = method.matching(x0, batch).mean() + 0.3 * F.softplus(-judged(x0, "fake")).mean()
        loss = method.student_loss(batch)
        assert set(loss.parts) == {"matching", "fooled"}
        torch.testing.assert_close(loss.total(), expected, rtol=1e-6, atol=1e-9)
        net = where.student.model
        ours, theirs = (torch.autograd.grad(v, net.output.weight)[0] for v in (loss.total(), expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
        made = batch["generated"]
        expected = method.following(made, batch).mean() + 0.2 * F.softplus(judged(made, "fake")).mean()
        expected = expected + 0.2 * F.softplus(-judged(batch["x0"], "real")).mean()
        torch.testing.assert_close(method.critic_loss(batch).total(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_without_a_weight_there_is_no_game_and_no_discriminator(name):
    where, method = situation(), KINDS[name]()
    batch = ready(method, where)
    assert set(method.student_loss(batch).parts) == {"matching"}
    assert set(method.critic_loss(batch).parts) == {"denoising"}
    assert not hasattr(method, "judge")
    assert not any("fake" in column or "real" in column for column in batch)
    assert method.trainees()["critic"] == [method.critic]


def test_a_critic_learns_as_fast_as_published():
    assert [KINDS[name]().lr_ratios()["critic"] for name in KINDS] == [1.0, 10.0, 1.0, 1.0, 5.0]
    assert DMD2(critic_lr_ratio=3).lr_ratios() == {"critic": 3.0}


def test_what_is_real_is_seen_at_times_and_with_noise_of_its_own():
    where, method = situation(), DMD2(gan_weight=0.1, gan_times=[0.2, 0.4])
    batch = ready(method, where)
    for kind in ("fake", "real"):
        assert ((batch[f"{kind}_time"] >= 0.2) & (batch[f"{kind}_time"] <= 0.4)).all()
    assert not torch.equal(batch["fake_time"], batch["real_time"])
    assert not torch.equal(batch["fake_noise"], batch["real_noise"])


def test_a_game_without_data_is_refused_before_the_first_step():
    where = situation()
    for actor in (where.student, where.teacher):
        actor.view = type(actor.view)(condition="label", id="id")
    settle(DMD2(), where)
    with pytest.raises(RecipeError, match="is shown data beside samples"):
        settle(DMD2(gan_weight=0.1), where)


@pytest.mark.parametrize("kind", [DMD2, VSD, SiD, TDM])
def test_low_rank_updates_are_scaled_by_alpha_over_rank(kind):
    """The published 108 / 64, here 7 / 2: with B set to ones the update is so much larger than without a word (2 / 2)."""
    pytest.importorskip("peft")
    moved = []
    for alpha in (None, 7):
        torch.manual_seed(0)
        where, method = situation(network()), kind(critic_lora=2, critic_lora_alpha=alpha)
        settle(method, where)
        layer = method.fake.model.inputs
        with torch.no_grad():
            layer.lora_A["critic"].weight.fill_(0.1)
            layer.lora_B["critic"].weight.fill_(1.0)
            x = torch.tensor([[1.0, 2.0]])
            moved.append(layer(x) - where.teacher.model.inputs(x))
    torch.testing.assert_close(moved[0], torch.full((1, 8), 0.1 * 3 * 2))
    torch.testing.assert_close(moved[1], 3.5 * moved[0])


def test_a_scale_of_updates_that_are_not_there_is_refused():
    with pytest.raises(RecipeError, match="critic_lora_alpha=8 scales low-rank updates"):
        settle(DMD2(critic_lora_alpha=8), situation(network()))
