"""Terms on a teacher of whom some classes are known: the sketched form by itself, or a refusal before anything is trained."""

import pytest
import torch

from limbeck import RecipeError, Student, Teacher, losses
from limbeck.losses import sketched
from limbeck.method import Progress
from limbeck.objectives import Objective, Term
from limbeck.signals import Projection, Signals
from limbeck.sketches import Sketch


class Told(torch.nn.Module):
    def forward(self, x):
        return x


class Sketching(Teacher):
    sketches = True


def actors() -> tuple[Student, Teacher]:
    student, teacher = Student(Told(), view="x"), Sketching(Told(), view="x")
    for actor in (student, teacher):
        actor.probe({"x": torch.zeros(2, 3, 7)})
    return student, teacher


def sides() -> tuple[Projection, Sketch]:
    torch.manual_seed(0)
    head = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(2, 3, 7, dtype=torch.float64).log_softmax(-1)
    known, ids = log_p.topk(3)
    rest = (1 - known.exp().sum(-1)).log()
    return Projection(torch.randn(2, 3, 4, dtype=torch.float64), head), Sketch(ids, known, rest, 7)


@pytest.mark.parametrize("name", ["kl", "reverse-kl", "js"])
def test_a_term_takes_the_form_for_sketches_by_itself(name):
    student, sketch = sides()
    objective = Objective(Term(name, temperature=1.0, mask="answer"))
    objective.settle(*actors())
    answer = torch.tensor([[True, False, True], [False, False, True]])
    for ours in (student, student.materialise()):
        loss = objective(Signals(logits=ours), Signals(logits=sketch), {"answer": answer}, Progress())
        values = sketched.matching(losses.find(name))(student, sketch)
        torch.testing.assert_close(loss.total().double(), values[answer].mean())


def test_a_loss_of_whole_distributions_is_refused_with_those_that_can_do_with_less():
    with pytest.raises(RecipeError, match=r"whole distributions.*These can do with that: .*kl.*the teacher itself"):
        Objective(Term("mse")).settle(*actors())
    with pytest.raises(RecipeError, match="whole distributions"):
        Objective(Term(lambda student, teacher: student, scope="batch", name="gap")).settle(*actors())
