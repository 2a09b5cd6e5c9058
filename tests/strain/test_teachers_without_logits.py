"""Teachers that give text only, the k likeliest words with their log-probabilities only, or embeddings only."""

import pytest
import torch
from harness import PLAIN, Net, fresh, situation, steps, survives, toy
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.losses import cross_entropy, mse
from limbeck.method import Card, Method, Transfer, Update
from limbeck.objectives import Loss, Objective, Term
from limbeck.signals import Signals

WORDS = {"ash": 0, "beech": 1, "cedar": 2}


class Texts(TensorSplit):
    """Rows in memory with one column that is a list of strings."""

    def __getitems__(self, indices):
        batch = super().__getitems__(indices)
        return batch | {"question": [f"which tree is number {i}?" for i in batch["id"].tolist()]}


class Oracle(nn.Module):
    """Stands for an endpoint: strings in, strings out, no weights."""

    def forward(self, question):
        return {"text": [sorted(WORDS)[int(q.split()[-1][:-1]) % 3] for q in question]}


class FromText(Method):
    """The answers' words are the labels; asked once per step, in `learn`, as an endpoint is."""

    card = Card("from-text", needs=("text",))

    def learn(self, batch, progress):
        texts = self.teacher(batch)["text"]
        outcome = yield Update("student", self.loss, batch | {"answer": texts})
        assert outcome.record["words"].shape == (len(texts),)

    def loss(self, batch):
        words = torch.tensor([WORDS[text] for text in batch["answer"]])
        loss = Loss.mean("words", cross_entropy(self.student(batch)["logits"], words))
        loss.record["words"] = words
        return loss


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_a_teacher_of_text_only(micro_batch, tmp_path):
    def build():
        plain = toy()
        tensors = {k: v for k, v in plain.splits["train"].tensors.items() if k != "id"}
        data = Data({"train": Texts(tensors)}, fingerprint="texts")
        where = situation(
            Student(Net(6), view="x"), Teacher(Oracle(), view="question"), data=data, **PLAIN, micro_batch=micro_batch
        )
        return FromText(), where

    course = survives(build, tmp_path)
    net = fresh(build)[1].student.model
    for batch in steps(fresh(build)[1]):
        loss = nn.functional.cross_entropy(net(batch["x"]), batch["id"] % 3)
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.out.weight, net.out.weight)


class TopTwo(nn.Module):
    """Stands for stored answers: the two likeliest classes per row, found by the row's id."""

    def __init__(self, logits):
        super().__init__()
        found = logits.log_softmax(-1).topk(2)
        self.register_buffer("which", found.indices)
        self.register_buffer("logp", found.values)

    def forward(self, id):
        return {"which": self.which[id], "logp": self.logp[id]}


def top_and_tail(student, which, logp):
    """KL over the classes that are known and one more that holds the rest of either side."""
    ours = student.log_softmax(-1).gather(-1, which)
    rest, rest_ours = ((1 - p.exp().sum(-1)).clamp(min=1e-6).log() for p in (logp, ours))
    return (logp.exp() * (logp - ours)).sum(-1) + rest.exp() * (rest - rest_ours)


class FromTop(Method):
    """Reads ids and log-probabilities; there are no logits."""

    card = Card("from-top", needs=("which", "logp"))

    def loss(self, batch):
        told = self.teacher(batch)
        assert isinstance(told, Signals)
        return Loss.mean("top", top_and_tail(self.student(batch)["logits"], told["which"], told["logp"]))


def test_a_teacher_of_top_k_only(tmp_path):
    logits = Net(4)(toy().splits["train"].tensors["a"]).detach() * 3

    def build():
        return FromTop(), situation(Student(Net(6), view="x"), Teacher(TopTwo(logits), view="id"), **PLAIN)

    course = survives(build, tmp_path)
    _, where = fresh(build)
    net = where.student.model
    for batch in steps(where):
        p, q = logits[batch["id"]].softmax(-1), net(batch["x"]).softmax(-1)
        # Of three classes two are known, so the third is the rest, and this is the whole divergence.
        loss = (p * (p.log() - q.log())).sum(-1).mean()
        for w, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            w.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.out.weight, net.out.weight, rtol=1e-4, atol=1e-5)


class Embeds(nn.Module):
    """An embedder: no classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, a):
        return {"embedding": self.layer(a)}


class Matching(Transfer):
    """The student's hint, through a bridge, is the teacher's embedding."""

    card = Card("matching", needs=("embedding",))

    def objective(self):
        return Objective(Term(mse, ("hint", "embedding")))


def test_a_teacher_of_embeddings_only(tmp_path):
    def build():
        student = Student(Net(6), view="x", taps={"hint": "fc2"})
        return Matching(), situation(student, Teacher(Embeds(), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    (bridge,) = course.methods[0].terms.bridges.values()
    assert isinstance(bridge, nn.Module)
    assert bridge(torch.zeros(2, 5)).shape == (2, 8)
    assert sum(p.numel() for p in bridge.parameters()) > 0


def test_asking_it_for_logits_names_what_there_is():
    where = situation(Student(Net(6), view="x"), Teacher(Embeds(), view="a"))

    class Wants(Transfer):
        card = Card("wants")

        def objective(self):
            return Objective(Term(mse))

    with pytest.raises(RecipeError, match=r"reads 'logits': the teacher does not give 'logits'\. There is: embedding"):
        settle(Wants(), where)
