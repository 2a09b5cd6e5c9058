"""SNOOPI: VSD with drawn scales; negative conditions for the teacher and the student, none for the critic."""

import pytest
import torch
from attending import Attending
from harness import fresh
from points import network, same, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.snoopi import SNOOPI
from limbeck.methods.vsd import VSD


def test_with_a_range_of_one_scale_it_is_vsd():
    found = []
    for method in (SNOOPI(guidance=[2.0, 2.0]), VSD(guidance=2.0)):
        plan, where = fresh(lambda m=method: (m, situation(network(), lr=0.02)))
        course = Course(plan, where)
        course.run()
        found.append(course)
    same(found[0].situation.student.model, found[1].situation.student.model)
    same(found[0].methods[0].critic, found[1].methods[0].critic)


def ready(**options):
    where, method = situation(student=Attending()), SNOOPI(**options)
    batch = settled(method, where)
    return where, method, batch


def test_the_scale_is_drawn_per_sample_and_shared():
    where, method, batch = ready()
    assert len(batch["guidance"].unique()) == 8
    assert 0.5 <= batch["guidance"].min() <= batch["guidance"].max() <= 4
    x, t, w = torch.randn(8, 2), torch.full((8,), 0.5), batch["guidance"][:, None]
    led = method.followed(x, batch | {"time": t}, guidance=batch["guidance"])
    for net, said in ((where.teacher.model, method.taught(x, t, batch)), (method.critic, led)):
        c, u = (net.prediction(x, t, {"condition": k}).x0 for k in (batch["label"], torch.full_like(batch["label"], 3)))
        torch.testing.assert_close(said.x0, u + w * (c - u))


def test_the_teacher_is_led_away_from_what_is_not_wanted_and_the_critic_from_nothing():
    where, method, batch = ready(negative=[1, 2])
    unwanted = batch["unwanted.condition"]
    assert set(unwanted.tolist()) <= {1, 2}
    assert torch.equal(unwanted, batch["student.negative_condition"])
    x, t, w = torch.randn(8, 2), torch.full((8,), 0.5), batch["guidance"][:, None]
    R, label = where.teacher.model, batch["label"]
    c, u = (R.prediction(x, t, {"condition": k}).x0 for k in (label, unwanted))
    torch.testing.assert_close(method.taught(x, t, batch).x0, u + w * (c - u))
    c, u = (method.critic.prediction(x, t, {"condition": k}).x0 for k in (label, torch.full_like(label, 3)))
    led = method.followed(x, batch | {"time": t}, guidance=batch["guidance"])
    torch.testing.assert_close(led.x0, u + w * (c - u))
    G = where.student.model
    batch |= method.inputs(batch)
    told = {"condition": label, "negative_condition": unwanted, "strength": batch["student.strength"]}
    made = G.prediction(batch["input"], batch["start"], told).x0
    torch.testing.assert_close(method.generated(batch), made)
    assert not torch.allclose(made, G.prediction(batch["input"], batch["start"], {"condition": label}).x0)


def test_a_discriminator_beside_it_hears_of_nothing_negative():
    where, method = situation(student=Attending()), SNOOPI(negative=[1, 2], gan_weight=0.1)
    where.student.model.middle = "inputs"
    batch = settled(method, where)
    assert set(method.given(batch, "student")) == {"condition", "negative_condition", "strength"}
    batch |= method.inputs(batch)
    loss = method.student_loss(method.for_student(batch))
    assert set(loss.parts) == {"matching", "fooled"}
    assert set(method.given(batch, "critic")) == {"condition"}


def test_a_training_with_negative_labels_leaves_a_student_that_ships_with_them():
    plan, where = fresh(lambda: (SNOOPI(negative=1), situation(student=Attending(), lr=0.01, epochs=1)))
    began = where.student.model.words.weight.clone()
    Course(plan, where).run()
    assert where.student.source.surgery[-1] == {
        "by": "limbeck.diffusion.negative:subtract",
        "structure": {"layers": ["attn2"]},
    }
    assert not torch.equal(where.student.model.words.weight, began)


@pytest.mark.parametrize("options", [{"negative": "blurry"}, {"negative": 1, "guidance": 1.0}, {"negative": []}])
def test_negatives_that_fit_nothing_are_refused(options):
    with pytest.raises(RecipeError, match="method.negative"):
        settle(SNOOPI(**options), situation(student=Attending()))
