"""Several denoising networks as one teacher: they are not mixed, and each row's sample is of the one that is meant."""

import pytest
import torch

from limbeck.actors import Student, Teacher
from limbeck.diffusion.denoiser import Denoiser
from limbeck.errors import RecipeError
from limbeck.evaluation.measure import measure
from limbeck.models.toy import PointDenoiser
from limbeck.tasks import Task
from limbeck.teachers import Mixture

COLUMNS = ["x", "label", "id"]


def member(seed, width=8):
    torch.manual_seed(seed)
    made = Teacher(PointDenoiser(width=width, classes=3))
    made.look_at(COLUMNS)
    return made


def mixture(**options):
    return Mixture({"ink": member(1), "oil": member(2), "wax": member(3)}, **options)


def batch(**more):
    rows = torch.arange(7)
    return {"x": torch.randn(7, 2), "label": rows % 3, "id": rows + 10} | more


def expected(teachers, rows, style):
    """Row by row: what the member makes of it alone."""
    members = list(teachers.members.values())
    one = lambda i: {name: value[i : i + 1] for name, value in rows.items()}  # noqa: E731
    return torch.cat([members[k](one(i))["generated"] for i, k in enumerate(style)])


def test_a_rows_number_decides_whose_sample_it_is():
    teachers, rows = mixture(), batch()
    made = teachers(rows)
    assert set(made) == {"generated"}
    torch.testing.assert_close(made["generated"], expected(teachers, rows, [(i + 10) % 3 for i in range(7)]))
    assert teachers.describe_samples(rows) == "each row's sample is of one of ink, oil, wax: number (row modulo 3)"


@pytest.mark.parametrize(("by", "column"), [("mean", "style"), ("hand", "hand"), ("confidence", "style")])
def test_a_column_decides_where_there_is_one(by, column):
    style = [2, 2, 0, 1, 0, 2, 2]
    teachers, rows = mixture(by=by), batch(**{column: torch.tensor(style)})
    torch.testing.assert_close(teachers(rows, reads={"generated"})["generated"], expected(teachers, rows, style))
    assert f"'{column}'" in teachers.describe_samples(rows)
    assert teachers.chosen(rows).tolist() == style


def test_one_that_nobody_asks_for_is_not_called():
    teachers = mixture()
    teachers.members["ink"].model.forward = None  # would raise
    rows = batch(style=torch.tensor([1, 2, 2, 2, 1, 1, 1]))
    assert teachers(rows)["generated"].shape == (7, 2)


def test_one_alone_is_itself_bit_for_bit():
    alone, rows = member(1), batch()
    assert torch.equal(Mixture({"ink": alone})(rows)["generated"], alone(rows)["generated"])


def test_figures_are_of_all_rows_and_say_whose():
    teachers, rows = mixture(), batch()
    found = measure(teachers, lambda: iter([dict(rows)]), Task("generation"))
    torch.testing.assert_close(found.outputs[:, :2], teachers(rows)["generated"])
    assert "ink, oil, wax" in found.entry["samples_of"]
    assert found.entry["latency_ms"] > 0
    single = measure(member(1), lambda: iter([dict(rows)]), Task("generation"), time_it=False)
    assert "samples_of" not in single.entry


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(RecipeError, match="from 0 to 3, and there are 3: ink, oil, wax"):
        mixture()(batch(style=torch.tensor([0, 1, 2, 3, 0, 0, 0])))
    with pytest.raises(RecipeError, match="'hand' is neither a rule nor a column"):
        mixture(by="hand")(batch())
    with pytest.raises(RecipeError, match="method=dmm"):
        Denoiser(mixture()).shown(batch())
    other = Teacher(PointDenoiser(width=8, classes=3, dims=3))
    other.look_at(COLUMNS)
    with pytest.raises(RecipeError, match="different shapes"):
        Mixture({"ink": member(1), "deep": other})(batch(x=torch.randn(7, 2)))


def test_a_student_of_classes_beside_generators_is_no_mixture_of_generators():
    odd = Teacher(torch.nn.Linear(2, 3), view="x")
    assert not Mixture({"ink": member(1), "odd": odd}).generates
    assert not isinstance(Student(PointDenoiser(width=8)), Mixture)
