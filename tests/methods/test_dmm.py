"""DMM: each sample learns from its own teacher, rows of others rest, one teacher that is the student loses nothing."""

import copy

import pytest
import torch
from harness import fresh, steps, survives
from points import descend, in_double, network, points, same, situation
from trajectories import play

from limbeck.actors import Teacher
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.dmm import DMM
from limbeck.teachers import Mixture


def merging(names=("ink", "oil"), student=None, **train):
    """Networks with weights of their own as teachers."""
    torch.manual_seed(7)
    made = {name: Teacher(network()) for name in names}
    data = points()
    data.splits["train"].tensors["style"] = torch.arange(22) % len(names)
    where = situation(teacher=network(), student=student or network(), data=data, **train)
    where.student.look_at(["x", "label", "id"])
    where.teacher = Mixture(made)
    where.teacher.look_at(["x", "label", "id"])
    return where


def test_a_training_is_a_loop_over_routed_teachers():
    def build():
        return DMM(column="style", feature_weight=0.1, drop=0.3), merging(lr=0.05)

    plan, where = fresh(build)
    course = Course(plan, where)
    course.run()

    method, where = fresh(build)
    settle(method, where)
    S, hidden = where.student.model, []
    nets = [S, *(m.model for m in where.teacher.members.values())]
    for net in nets:
        net.hidden[1].register_forward_hook(lambda m, args, out: hidden.append(out))
    for batch in steps(where):
        n, style = len(batch["x"]), batch["style"]
        eps, t = torch.randn(n, 2), torch.rand(n).clamp(1e-3, 1)
        label = torch.where(torch.rand(n) < 0.3, 3, batch["label"])
        x_t = (1 - t[:, None]) * batch["x"] + t[:, None] * eps
        hidden.clear()
        said = S.predict(x_t, t, condition=label, style=style)
        with torch.no_grad():
            told = torch.stack([net.predict(x_t, t, condition=label) for net in nets[1:]])[style, torch.arange(n)]
        own, theirs = hidden[0], torch.stack(hidden[1:])[style, torch.arange(n)]
        descend(S.parameters(), (said - told).square().mean() + 0.1 * (own - theirs).square().mean(), 0.05)
    same(course.situation.student.model, S)


def ready(where, method, style):
    settle(method, where)
    batch = method.begin(where.data.splits["train"].__getitems__(list(range(8))))
    batch["student.style"] = torch.full((8,), style)
    return batch | {"noise": method.fresh(batch), "time": method.drawn(batch)}


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_a_student_that_is_its_only_teacher_loses_nothing(drop):
    """K = 1, rows that begin at zero: whatever is dropped, both are asked the same."""
    with in_double():
        where = merging(["ink"])
        where.student.model.load_state_dict(where.teacher.members["ink"].model.state_dict())
        method = DMM(drop=drop)
        settle(method, where)
        (update,) = play(method, where.data.splits["train"].__getitems__(list(range(8))))
        loss = method.loss(dict(update.batch))
        assert set(loss.parts) == {"merging", "features"}
        assert loss.total().item() == pytest.approx(0, abs=1e-30)


def test_rows_of_other_teachers_have_no_gradient_and_other_teachers_are_not_heard():
    where, method = merging(), DMM()
    batch = ready(where, method, 1)
    loss = method.loss(batch).total()
    loss.backward()
    rows = where.student.model.styles.rows.grad
    assert rows[0].abs().max() == 0
    assert rows[1].abs().max() > 0
    with torch.no_grad():
        where.teacher.members["ink"].model.output.bias.add_(5.0)
    torch.testing.assert_close(method.loss(batch).total(), loss)


def test_it_speaks_as_it_is_told_and_a_copy_is_shipped_with_that():
    for said, usual in ((None, [1, 0]), ("oil", [0, 1]), ([0.3, 0.7], [0.3, 0.7])):
        where, method = merging(), DMM(speaks_as=said)
        settle(method, where)
        assert where.student.source.surgery[-2]["structure"]["usual"] == pytest.approx(usual)
        assert copy.deepcopy(where.student.model).styles.usual.tolist() == pytest.approx(usual)
    with pytest.raises(RecipeError, match="ink, oil"):
        settle(DMM(speaks_as="oli"), merging())


def test_rows_survive_a_kill(tmp_path):
    survives(lambda: (DMM(), merging(optimizer="adamw", lr=1e-2, epochs=1)), tmp_path)


def styled(style, labels=None):
    """Two teachers, and a column of this kind."""
    where = merging()
    where.data.splits["train"].tensors["style"] = style
    where.data.labels |= {} if labels is None else {"style": labels}
    return where


@pytest.mark.parametrize(
    ("column", "style", "match"),
    [
        ("stile", torch.zeros(22, dtype=torch.int64), "'stile' is no column of the data. Did you mean 'style'.*0 ink, 1 oil"),
        ("style", torch.arange(22) % 3, "goes from 0 to 2 in the split train, and there are 2 teachers.*0 ink, 1 oil"),
        ("style", torch.arange(22) % 2 - 1, "goes from -1 to 0"),
        ("style", torch.linspace(0, 1, 22), "one whole number per row"),
        ("x", torch.zeros(22, dtype=torch.int64), "one whole number per row"),
    ],
    ids=["no column", "too high", "below zero", "no whole numbers", "points"],
)  # fmt: skip
def test_a_column_that_names_no_teacher_is_refused_before_the_first_step(column, style, match):
    with pytest.raises(RecipeError, match=match):
        settle(DMM(column=column), styled(style))


def test_other_splits_are_looked_at_too_and_names_in_another_order_are_spoken_of():
    where = styled(torch.arange(22) % 2)
    where.data.splits["validation"].tensors["style"] = torch.full((22,), 5)
    with pytest.raises(RecipeError, match="goes from 5 to 5 in the split validation"):
        settle(DMM(column="style"), where)
    with pytest.raises(RecipeError, match="counts oil, ink, and the teachers stand in the order ink, oil"):
        settle(DMM(column="style"), styled(torch.arange(22) % 2, ["oil", "ink"]))
    settle(DMM(column="style"), styled(torch.arange(22) % 2, ["ink", "oil"]))
    settle(DMM(column="style"), styled(torch.arange(22).double() % 2))  # whole numbers, whatever they are kept in


def test_a_row_of_no_teacher_that_could_not_be_looked_at_before_is_no_row_lost():
    where, method = merging(), DMM(column="style")
    batch = ready(where, method, 1)
    batch["student.style"][3] = 2
    with pytest.raises(RecipeError, match=r"holds \[1, 2\], and there are 2 teachers"):
        method.loss(batch)


def test_every_teacher_is_looked_at_and_measured_as_it_taught():
    """A guided merge: all members know what to say without a condition, or it is refused; and each is sampled with its scale."""
    where = merging()
    settle(DMM(guidance=[1.0, 4.0]), where)
    assert [m.model.sampling.guidance for m in where.teacher.members.values()] == [2.5, 2.5]
    where = merging()
    where.teacher.members["oil"].model.guidable = False
    with pytest.raises(RecipeError, match="method.guidance=1"):
        settle(DMM(guidance=2.0), where)
    where = merging()
    with torch.no_grad():
        where.teacher.members["oil"].model.output.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the teacher oil .PointDenoiser.: its velocity is not finite"):
        settle(DMM(), where)
