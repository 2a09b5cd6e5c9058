"""Loss, Term, Objective: sums with counts, the bridges and label matches that stand between two models."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.losses import cross_entropy, kl, mse
from limbeck.method import Card, Progress, Terms, Transfer
from limbeck.methods.kd import KD
from limbeck.objectives import BatchPart, Loss, Objective, Part, Term
from limbeck.schedules import Linear
from limbeck.signals import Projection, Signals
from limbeck.tasks import Task

ROWS = 6
G = torch.Generator().manual_seed(0)
BATCH = {
    "x": torch.randn(ROWS, 4, generator=G),
    "label": torch.randint(0, 3, (ROWS,), generator=G),
    "keep": torch.tensor([True, True, False, True, False, True]),
    "id": torch.arange(ROWS),
}


class Two(nn.Module):
    """Logits and a hint."""

    def __init__(self, classes, width):
        super().__init__()
        self.body, self.head = nn.Linear(4, width), nn.Linear(width, classes)

    def forward(self, x):
        h = self.body(x)
        return {"logits": self.head(h), "hint": h}


def pair(ours=(3, 5), theirs=(3, 5), labels=None, their_labels=None, label_map="name"):
    torch.manual_seed(0)
    student = Student(Two(*ours), view="x", labels=labels)
    teacher = Teacher(Two(*theirs), view="x", labels=their_labels, label_map=label_map)
    for actor in (student, teacher):
        actor.probe(BATCH)
    return student, teacher


def value(objective, student, teacher, progress=None):
    loss = objective(student(BATCH), teacher(BATCH), BATCH, progress or Progress())
    return {name: float((p.sum / p.count).detach()) * float(p.weight) for name, p in loss.parts.items()}, loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_loss_of_the_whole_batch_that_finds_no_values_is_zero_and_has_a_gradient(dtype):
    """Such as a loss on labelled rows, in a batch that has none."""
    x = torch.ones(4, dtype=dtype, requires_grad=True)
    for count in (0, 3):
        value = Loss.batch("some", lambda x, count=count: x[:count] * 2, x=x).total()
        assert float(value.detach()) == (2 if count else 0)
        (gradient,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(
            gradient.float(), torch.tensor([2 / 3] * count + [0.0] * (4 - count)), atol=4e-3, rtol=0
        )


def test_a_mean_is_a_sum_and_a_count():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (part,) = Loss.mean("a", values).parts.values()
    assert (float(part.sum), part.count, part.per_sample) == (10.0, 4.0, 2)
    (part,) = Loss.mean("a", values, torch.tensor([[True, False], [True, True]])).parts.values()
    assert (float(part.sum), float(part.count)) == (8.0, 3.0)
    (part,) = Loss.mean("a", values, torch.tensor([[0.5, 0.0], [0.5, 0.0]])).parts.values()
    assert (float(part.sum), float(part.count)) == (2.0, 1.0)


def test_what_is_masked_out_may_be_nan_and_has_no_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    values = torch.stack([x[0], x[1] * torch.nan])
    total = Loss.mean("a", values, torch.tensor([True, False])).total()
    assert float(total.detach()) == 1.0
    assert torch.autograd.grad(total, x)[0][0] == 1.0


def test_sums_of_half_precision_values_are_taken_in_fp32():
    loss = Loss.mean("a", torch.ones(4097, dtype=torch.bfloat16))
    assert float(loss.total()) == 1.0
    assert loss.parts["a"].sum.dtype == torch.float32
    assert Loss.mean("a", torch.ones(3, dtype=torch.float64)).parts["a"].sum.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Loss.mean("gap", torch.tensor(1.0)), r'gap returned one number; .* Or say scope="batch"'),
        (lambda: Loss.mean("a", torch.ones(3), torch.ones(2) > 0), r"a: the mask has shape \[2\], the values \[3\]"),
        (lambda: Loss.mean("a", torch.ones(3)) + Loss.mean("a", torch.ones(3)), "both called a; give each term"),
        (lambda: Loss().total(), "a loss without parts"),
    ],
)
def test_what_is_no_loss(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(1, 5)), min_size=1, max_size=4))
def test_a_sum_of_losses_is_the_sum_of_their_numbers(parts):
    losses = [w * Loss.mean(str(i), torch.arange(n, dtype=torch.float64)) for i, (w, n) in enumerate(parts)]
    expected = sum(w * (n - 1) / 2 for w, n in parts)
    assert math.isclose(float(sum(losses, start=Loss()).total()), expected, abs_tol=1e-9)
    assert math.isclose(float((0.5 * sum(losses)).total()), 0.5 * expected, abs_tol=1e-9)


def test_records_travel_with_sums():
    first, second = Loss.mean("a", torch.ones(2)), Loss.mean("b", torch.ones(2))
    first.record["id"], second.record["said"] = torch.arange(2), torch.ones(2)
    assert set((2 * first + second).record) == {"id", "said"}


def test_an_objective_is_the_weighted_sum_of_its_terms():
    student, teacher = pair()
    objective = Objective(Term(kl, temperature=2.0), Term("mse", "hint", weight=0.5), Term(mse, weight=3.0, name="raw"))
    objective.settle(student, teacher)
    values, loss = value(objective, student, teacher)
    ours, theirs = student(BATCH), teacher(BATCH)
    expected = {
        "kl": kl(ours["logits"], theirs["logits"], temperature=2.0).mean(),
        "mse": 0.5 * mse(ours["hint"], theirs["hint"]).mean(),
        "raw": 3.0 * mse(ours["logits"], theirs["logits"]).mean(),
    }
    assert values == pytest.approx({name: float(v.detach()) for name, v in expected.items()})
    torch.testing.assert_close(loss.total(), sum(expected.values()))


def test_terms_of_one_name_are_told_apart():
    objective = Objective(Term(mse), Term(mse, "hint"), Term(kl), Term(kl))
    assert [term.name for term in objective.terms] == ["mse.0", "mse.hint", "kl.2", "kl.3"]


def test_bridges_are_built_where_shapes_differ_and_said():
    student, teacher = pair(theirs=(3, 8))
    objective = Objective(Term(mse, "hint"))
    said = objective.settle(student, teacher)
    (bridge,) = objective.bridges.values()
    assert bridge(torch.zeros(2, 5)).shape == (2, 8)
    assert len(said) == 1
    assert re.search(r"mse: .*5.*8", said[0])
    values, _ = value(objective, student, teacher)
    expected = mse(bridge(student(BATCH)["hint"]), teacher(BATCH)["hint"]).mean()
    assert values["mse"] == pytest.approx(float(expected.detach()))
    assert list(objective.parameters())  # they learn with whoever holds the objective


def test_a_bridge_of_the_users_own_and_none_at_all():
    student, teacher = pair(theirs=(3, 8))
    own = nn.Linear(5, 8)
    objective = Objective(Term(mse, "hint", bridge=own))
    objective.settle(student, teacher)
    assert list(objective.bridges.values()) == [own]
    bare = Objective(Term(gram, "hint", bridge="none", scope="batch"))
    assert bare.settle(student, teacher) == []
    expected = gram(student(BATCH)["hint"], teacher(BATCH)["hint"])
    torch.testing.assert_close(bare(student(BATCH), teacher(BATCH), BATCH, Progress()).total(), expected)
    same, also = pair()
    objective = Objective(Term(mse, "hint"))
    assert objective.settle(same, also) == []
    assert not objective.bridges


def gram(student, teacher):
    """Compares spaces of different width."""
    return (student @ student.T - teacher @ teacher.T).square().mean()


def test_one_signal_against_another():
    student, teacher = pair(ours=(5, 3), theirs=(3, 5))
    objective = Objective(Term(mse, ("hint", "logits")))
    objective.settle(student, teacher)
    values, _ = value(objective, student, teacher)
    expected = mse(student(BATCH)["hint"], teacher(BATCH)["logits"]).mean()
    assert values["mse"] == pytest.approx(float(expected.detach()))


def test_classes_that_differ_in_number_are_refused_with_what_to_do():
    """Message 5 of the API."""
    student, teacher = pair(ours=(12, 5), theirs=(10, 5))
    with pytest.raises(RecipeError) as error:
        Objective(Term(kl)).settle(student, teacher)
    assert str(error.value) == (
        "student logits have 12 classes, teacher logits 10. Give both their names (teacher.labels, student.labels) and they "
        "are matched by name, or student.args.classes=10"
    )


def test_a_loss_of_one_number_is_refused_with_what_to_do():
    """Message 8 of the API."""

    def gap(student, teacher):
        return (student - teacher).abs().mean()

    student, teacher = pair()
    objective = Objective(Term(gap))
    objective.settle(student, teacher)
    with pytest.raises(RecipeError) as error:
        value(objective, student, teacher)
    assert str(error.value) == (
        "gap returned one number; a loss returns one value per sample (or token), so that any re-weighting can act on it. "
        'Or say scope="batch"'
    )
    whole = Objective(Term(gap, scope="batch"))
    whole.settle(student, teacher)
    expected = gap(student(BATCH)["logits"], teacher(BATCH)["logits"])
    torch.testing.assert_close(whole(student(BATCH), teacher(BATCH), BATCH, Progress()).total(), expected)


def test_labels_are_matched_by_name_and_joined_as_probabilities():
    ours, theirs = ["ash", "beech", "cedar"], ["oak", "cedar", "red ash", "white ash"]
    mapped = {"red ash": "ash", "white ash": "ash"}
    student, teacher = pair((3, 5), (4, 5), ours, theirs, mapped)
    objective = Objective(Term(kl))
    objective.settle(student, teacher)
    values, _ = value(objective, student, teacher)
    p, q = teacher(BATCH)["logits"].softmax(-1), student(BATCH)["logits"].softmax(-1)
    p = torch.stack([p[:, 2] + p[:, 3], p[:, 1]], 1)
    p, q = p / p.sum(1, keepdim=True), q[:, [0, 2]] / q[:, [0, 2]].sum(1, keepdim=True)
    expected = (p * (p / q).log()).sum(1).mean()
    assert values["kl"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_equal_labels_are_not_touched_and_a_permutation_is():
    names = ["a", "b", "c"]
    same = Objective(Term(kl))
    same.settle(*pair(labels=names, their_labels=names))
    assert same.match is None
    student, teacher = pair(labels=names, their_labels=["c", "a", "b"])
    turned = Objective(Term(mse))
    turned.settle(student, teacher)
    values, _ = value(turned, student, teacher)
    expected = mse(student(BATCH)["logits"], teacher(BATCH)["logits"][:, [1, 2, 0]]).mean()
    assert values["mse"] == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize(
    ("labels", "their_labels", "label_map", "sentence"),
    [
        (["a", "b"], ["a", "b", "c"], "name", "student.labels names 2 classes, its logits have 3"),
        (["a", "b", "c"], ["a", "x", "y"], "name", "share 1 labels; .* Student: a, b, c. Teacher: a, x, y"),
        (["a", "b", "c"], ["a", "b", "d"], {"e": "a"}, "label_map names e, which neither side has"),
    ],
)
def test_labels_that_do_not_fit(labels, their_labels, label_map, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Objective(Term(kl)).settle(*pair(labels=labels, their_labels=their_labels, label_map=label_map))


def test_masks_by_column_are_given_or_applied():
    student, teacher = pair()
    objective = Objective(Term(kl, mask="keep", name="takes it"), Term(away, mask="keep", name="does not"))
    objective.settle(student, teacher)
    values, loss = value(objective, student, teacher)
    ours, theirs = student(BATCH)["logits"], teacher(BATCH)["logits"]
    for name, function in (("takes it", kl), ("does not", away)):
        assert values[name] == pytest.approx(float(function(ours, theirs)[BATCH["keep"]].mean().detach()))
        assert loss.parts[name].mask is BATCH["keep"]  # so that the engine can count it before


def away(student, teacher):
    return (student - teacher).abs().sum(-1)


def test_a_function_may_ask_for_labels_progress_and_options():
    seen = []

    def wanting(student, teacher, *, target, progress, power=1):
        seen.append((target, progress.step, power))
        return (student - teacher).abs().sum(-1) ** power

    student, teacher = pair()
    objective = Objective(Term(wanting, power=2))
    objective.settle(student, teacher)
    value(objective, student, teacher, Progress(step=7))
    assert seen == [(BATCH["label"], 7, 2)]
    with pytest.raises(RecipeError, match=r"unknown key 'powr' of wanting\. Did you mean 'power'\?"):
        Term(wanting, powr=2)
    with pytest.raises(RecipeError, match=r"scope 'batches' of a term is not known\. Did you mean 'batch'"):
        Term(wanting, scope="batches")


def test_weights_may_change_while_training():
    student, teacher = pair()
    objective = Objective(Term(mse, weight=Linear(start=1.0, end=0.0)))
    objective.settle(student, teacher)
    full, _ = value(objective, student, teacher, Progress(step=0, steps=10))
    less, _ = value(objective, student, teacher, Progress(step=4, steps=10))
    assert less["mse"] == pytest.approx(0.6 * full["mse"])


def test_a_projection_is_multiplied_out_for_a_loss_that_does_not_know_it():
    layer, hidden = nn.Linear(4, 3), torch.randn(ROWS, 4)
    theirs = torch.randn(ROWS, 3)
    objective = Objective(Term(mse))
    loss = objective(
        Signals(logits=Projection(hidden, layer.weight, layer.bias)), Signals(logits=theirs), BATCH, Progress()
    )
    torch.testing.assert_close(loss.total(), mse(layer(hidden), theirs).mean())


@pytest.mark.parametrize(
    ("term", "sentence"),
    [
        (lambda: Term(mse, "hnt"), r"mse reads 'hnt': the student does not give 'hnt'\. Did you mean 'hint'\?"),
        (lambda: Term(mse, ("hint", "hnt")), r"mse reads 'hnt': the teacher does not give 'hnt'\. .* teacher\.taps="),
        (lambda: Term("klm"), r"Did you mean|There is"),
    ],
)
def test_what_is_not_there_is_named(term, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Objective(term()).settle(*pair())


def test_without_a_teacher_there_is_nothing_to_compare():
    with pytest.raises(RecipeError, match="kl compares student and teacher, and there is no teacher"):
        Objective(Term(kl)).settle(pair()[0], None)


class Hints(Transfer):
    """A second transfer, to be added."""

    card = Card("hints")

    def objective(self):
        return Objective(Term(mse, "hint"))


def ready(method, **actors):
    student, teacher = pair(**actors)
    rows = TensorSplit({k: v for k, v in BATCH.items() if k != "id"})
    where = Situation(student, teacher, Task("classification"), Data({"train": rows}), TrainSettings())
    settle(method, where)
    return method, student, teacher


def test_a_sum_of_methods_counts_the_task_once_with_the_first_weight():
    method, student, teacher = ready(KD(task_weight=0.25, weight=2.0, temperature=3.0) + Hints(weight=0.5) + Term(away))
    loss = method.loss(BATCH)
    ours, theirs = student(BATCH), teacher(BATCH)
    expected = {
        "kl": 2.0 * kl(ours["logits"], theirs["logits"], temperature=3.0).mean(),
        "mse": 0.5 * mse(ours["hint"], theirs["hint"]).mean(),
        "away": away(ours["logits"], theirs["logits"]).mean(),
        "task": 0.25 * cross_entropy(ours["logits"], BATCH["label"]).mean(),
    }
    assert list(loss.parts) == list(expected)
    torch.testing.assert_close(loss.total(), sum(expected.values()))


def test_two_terms_of_one_name_in_a_sum_are_both_kept():
    method, student, teacher = ready(KD() + Term(kl, temperature=1.0, name="kl"))
    loss = method.loss(BATCH)
    assert [name for name in loss.parts if name.endswith("kl")] == ["kl", "kl.kl"]
    one = kl(student(BATCH)["logits"], teacher(BATCH)["logits"], temperature=1.0).mean()
    four = kl(student(BATCH)["logits"], teacher(BATCH)["logits"], temperature=4.0).mean()
    task = cross_entropy(student(BATCH)["logits"], BATCH["label"]).mean()
    torch.testing.assert_close(loss.total(), one + four + task)


def test_what_cannot_be_added_says_so():
    with pytest.raises(RecipeError, match="kd stands twice in the sum"):
        KD() + KD(temperature=1.0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=4))
def test_any_weights_add_up(weights):
    student, teacher = pair()
    objective = Objective(*(Term(mse, weight=w, name=f"t{i}") for i, w in enumerate(weights)))
    objective.settle(student, teacher)
    _, loss = value(objective, student, teacher)
    single = mse(student(BATCH)["logits"], teacher(BATCH)["logits"]).mean()
    torch.testing.assert_close(loss.total(), sum(weights) * single)
    assert all(isinstance(p, Part) and not isinstance(p, BatchPart) for p in loss.parts.values())


class Dense(nn.Module):
    """Logits [batch, 4, height, width] out of an image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.head(x)


def dense(**options):
    torch.manual_seed(0)
    columns = {"x": torch.randn(6, 3, 5, 7), "label": torch.randint(-1, 4, (6, 5, 7)), "some": torch.rand(6) < 0.5}
    split = TensorSplit(columns)
    data = Data(
        {"train": split, "validation": split}, dict.fromkeys(columns, ""), {"label": list("abcd")}, source="toy"
    )
    actors = Student(Dense(), view="x"), Teacher(Dense(), view="x")
    where = Situation(*actors, Task("segmentation", labels=list("abcd")), data, TrainSettings(epochs=1, batch_size=3))
    method = KD(temperature=2.0, **options)
    settle(method, where)
    return method, split.__getitems__(list(range(6)))


def per_pixel(method, batch):
    ours, theirs = method.student.model(batch["x"]), method.teacher.model(batch["x"])
    p, log_q = (theirs / 2).softmax(1), (ours / 2).log_softmax(1)
    return 4 * (p * (p.log() - log_q)).sum(1)


def test_maps_of_logits_are_compared_pixel_by_pixel_over_their_channels():
    method, batch = dense()
    part = method.loss(batch).parts["kl"]
    torch.testing.assert_close(part.sum / part.count, per_pixel(method, batch).mean())
    assert part.count == 6 * 5 * 7


@pytest.mark.parametrize("column", ["label", "some"])
def test_a_mask_says_which_pixels_or_samples_count(column):
    method, batch = dense(mask=column)
    part = method.loss(batch).parts["kl"]
    counts = batch["label"] >= 0 if column == "label" else batch["some"][:, None, None].expand(6, 5, 7)
    torch.testing.assert_close(part.sum / part.count, per_pixel(method, batch)[counts].mean())
    wrong, batch = dense(mask="lable")
    with pytest.raises(RecipeError, match=r"mask is to be read from the column 'lable'. Did you mean 'label'\?"):
        wrong.loss(batch)


def test_labels_go_with_the_classes_that_both_know():
    """The student knows a, b, c, d and the teacher d, b, a: the term sees a, b, d as 0, 1, 2, and c as -1."""
    seen = []

    def look(student, teacher, *, target):
        seen.append(target)
        return (student - teacher).square().mean(-1)

    torch.manual_seed(0)
    split = TensorSplit({"x": torch.randn(5, 4), "label": torch.tensor([0, 1, 2, 3, 3])})
    data = Data({"train": split}, {"x": "", "label": ""}, {"label": list("abcd")}, source="toy")
    student = Student(nn.Linear(4, 4), view="x", labels=list("abcd"))
    teacher = Teacher(nn.Linear(4, 3), view="x", labels=list("dba"))
    method = Terms(Term(look))
    settle(
        method, Situation(student, teacher, Task("classification", labels=list("abcd")), data, TrainSettings(epochs=1))
    )
    method.loss(split.__getitems__(list(range(5))))
    assert seen[-1].tolist() == [0, 1, -1, 2, 2]
