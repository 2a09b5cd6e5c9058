"""Several language models as one teacher: their logits are mixed without being multiplied out."""

import pytest
import torch
from torch import nn

from limbeck import Student, Task, Teacher
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.methods.token_kd import ForwardKL
from limbeck.signals import Projection
from limbeck.sketches import Sketch
from limbeck.teachers import Mixture


class Speaker(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.read, self.head = nn.Embedding(7, width), nn.Linear(width, 7)

    def forward(self, input_ids):
        return {"logits": Projection(self.read(input_ids), self.head.weight, self.head.bias)}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 1, 0]])
    answer = torch.tensor([[True, True, False, False], [False, True, True, False]])
    target = ids.roll(-1, 1).where(answer, -100)
    return {"input_ids": ids, "answer": answer, "target": target, "id": torch.arange(2), "answer_bytes": answer.sum(1)}


@pytest.mark.parametrize("by", ["mean", "confidence"])
def test_a_student_learns_from_the_mixed_logits(by):
    torch.manual_seed(0)
    student = Student(Speaker(3), view="input_ids")
    members = {name: Teacher(Speaker(width), view="input_ids") for name, width in (("a", 4), ("b", 5))}
    mixture = Mixture(members, by=by)
    for actor in (student, mixture):
        actor.probe(batch())
    method = ForwardKL().bind(student, mixture, Task("text"))
    method.setup()
    own = batch()
    z = student(own)["logits"].materialise()[own["answer"]]
    parts = torch.stack([member(own)["logits"].materialise()[own["answer"]] for member in members.values()])
    if by == "mean":
        mixed = parts.mean(0)
        assert isinstance(mixture(own)["logits"], Projection)
    else:
        log_p = parts.log_softmax(-1)
        share = (log_p.exp() * log_p).sum(-1).softmax(0)
        mixed = (share[..., None] * parts).sum(0)
    torch.testing.assert_close(method.loss(own).total(), kl(z, mixed).mean())


@pytest.mark.parametrize("by", ["mean", "confidence"])
def test_sketches_cannot_be_mixed(by):
    """Of one teacher all classes are known, of the other some: there is no distribution that both would stand behind."""
    one, other = (Teacher(Speaker(4), view="input_ids") for _ in range(2))
    whole = one(batch())["logits"].materialise()
    mixture = Mixture({"a": one, "b": other}, by=by)
    with pytest.raises(RecipeError, match="cannot be mixed with others"):
        mixture._mix([whole, Sketch.top(whole, 2)], batch())
    assert isinstance(mixture._mix([Sketch.top(whole, 2)], batch()), Sketch)
