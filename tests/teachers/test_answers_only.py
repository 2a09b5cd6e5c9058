"""A teacher that only answers: everything that a method may do with it, and a sentence for everything that it may not."""

import copy

import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.signals import Signals
from limbeck.teachers.answers_only import AnswersOnly


class Oracle(AnswersOnly):
    only = "an oracle speaks and does no more"
    itself = "a network"
    holds = ["logits"]

    def __init__(self, folder=None):
        self._stand_in("Delphi", "Delphi, in person", folder)

    def __call__(self, batch, *, replace=None, until=None, reads=None):
        self._only_read(replace, until, reads)
        return Signals(logits=batch["x"])

    def lacks(self, name):
        return f"no {name}"


BATCH = {"x": torch.ones(2, 3)}


def test_it_answers():
    teacher = Oracle()
    assert teacher(BATCH)["logits"] is BATCH["x"]
    assert teacher(BATCH, reads=["logits"])["logits"] is BATCH["x"]
    assert teacher(BATCH, replace={}, reads=[])["logits"] is BATCH["x"]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (
            lambda t: t(BATCH, replace={"hint": torch.relu}),
            r"the method replaces 'hint' inside the teacher, and an oracle",
        ),
        (lambda t: t(BATCH, until="hint"), r"the method stops at 'hint' inside .* does no more\. Use a network$"),
        (lambda t: t(BATCH, reads=["logits", "hint"]), r"^no hint$"),
        (
            lambda t: setattr(t, "mode", "through"),
            r"works inside the teacher .* does no more\. .* \(kd\), or a network$",
        ),
        (lambda t: setattr(t, "learning", True), r"trains the teacher, and an oracle .*\. Use a network$"),
        (lambda t: t.shown(BATCH), r"an oracle .* it is shown nothing"),
        (lambda t: t.model(BATCH["x"]), r"no network to run here: ask the teacher"),
    ],
)
def test_what_it_cannot_do_is_said(act, sentence):
    with pytest.raises(RecipeError, match=sentence):
        act(Oracle())


def test_it_stays_as_it_is():
    teacher = Oracle()
    teacher.mode, teacher.learning = "frozen", False
    teacher.listen_again()
    assert (teacher.mode, teacher.learning) == ("frozen", False)
    assert copy.deepcopy({"t": teacher})["t"] is teacher
    assert (type(teacher.model).__name__, list(teacher.model.parameters())) == ("Delphi", [])


def test_a_recipe_can_name_the_folder_of_its_answers(tmp_path):
    source = Oracle(tmp_path).source
    assert (source.spec, source.weights) == ({"model": str(tmp_path)}, tmp_path.resolve())
    assert source.describe() == "Delphi, in person"
    assert (Oracle().source.spec, Oracle().source.weights) == (None, None)
