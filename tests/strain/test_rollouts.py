"""On-policy: the student writes, the teacher judges what it wrote; rewards; a teacher of the same weights."""

import torch
from harness import PLAIN, fresh, rows, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.losses import reverse_kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss

WORDS, END, LONGEST = 6, 0, 5


class Writes(nn.Module):
    """A language model of one recurrent layer; word 0 ends a text."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed, self.memory = nn.Embedding(WORDS, 5), nn.GRU(5, 6, batch_first=True)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(6, WORDS)

    def forward(self, words):
        return self.head(self.drop(self.memory(self.embed(words))[0]))


def prompts():
    def split(count, first, seed):
        g = torch.Generator().manual_seed(seed)
        return TensorSplit({"prompt": torch.randint(1, WORDS, (count, 2), generator=g)}, first)

    return Data({"train": split(22, 0, 1)}, {"prompt": ""}, source="toy")


class OnPolicy(Method):
    """Reverse KL on the student's own words, up to its own end; and a reward for every word 3 (REINFORCE)."""

    card = Card("on-policy-strain")
    reward: float = 0.0

    def rollout(self, prompt):
        words = prompt
        for _ in range(LONGEST):
            logits = self.student({"words": words})["logits"][:, -1]
            words = torch.cat([words, torch.multinomial(logits.softmax(-1), 1)], 1)
        written = words[:, prompt.shape[1] :]
        ended = (written == END).cumsum(1) - (written == END).long()  # how many ends stand before each word
        return {"words": words, "counts": ended == 0, "gain": (written == 3).float() - 1 / WORDS}

    def learn(self, batch, progress):
        outcome = yield Update("student", self.loss, batch | self.rollout(batch["prompt"]))
        assert outcome.record["length"].shape == (len(batch["id"]),)

    def loss(self, batch):
        start = batch["prompt"].shape[1] - 1
        ours, theirs = (actor(batch)["logits"][:, start:-1] for actor in (self.student, self.teacher))
        loss = Loss.mean("reverse_kl", reverse_kl(ours, theirs), batch["counts"])
        if self.reward:
            said = ours.log_softmax(-1).gather(-1, batch["words"][:, start + 1 :].unsqueeze(-1)).squeeze(-1)
            loss = loss + self.reward * Loss.mean("reward", -batch["gain"] * said, batch["counts"])
        loss.record["length"] = batch["counts"].sum(1)
        return loss


def build(reward=0.0, dropout=0.0, **train):
    student, teacher = Student(Writes(dropout), view="words"), Teacher(Writes(), view="words")
    data = prompts()
    for split in data.splits.values():
        split.tensors["words"] = split.tensors["prompt"]
    where = situation(student, teacher, data=data, **PLAIN | train)
    where.task = None
    return OnPolicy(reward=reward), where


def test_the_student_is_taught_on_its_own_words(tmp_path):
    course = survives(lambda: build(reward=0.5), tmp_path)
    cut = survives(lambda: build(reward=0.5, micro_batch=3), tmp_path / "cut")

    method, where = fresh(lambda: build(reward=0.5))
    settle(method, where)
    ours, theirs = where.student.model, where.teacher.model
    for batch in steps(where):
        with torch.no_grad():
            more = method.rollout(batch["prompt"])
        logits, judge = ours(more["words"])[:, 1:-1], theirs(more["words"])[:, 1:-1].detach()
        logp = logits.log_softmax(-1)
        apart = (logp.exp() * (logp - judge.log_softmax(-1))).sum(-1)
        said = logp.gather(-1, more["words"][:, 2:].unsqueeze(-1)).squeeze(-1)
        both = (apart - 0.5 * more["gain"] * said)[more["counts"]].sum() / more["counts"].sum()
        for p, grad in zip(ours.parameters(), torch.autograd.grad(both, list(ours.parameters()))):
            p.data -= 0.1 * grad
    for found in (course, cut):
        for p, expected in zip(found.situation.student.model.parameters(), ours.parameters()):
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


def test_rollouts_with_dropout_survive(tmp_path):
    survives(lambda: build(dropout=0.3, micro_batch=3, optimizer="adamw"), tmp_path)


class SameWeights(Method):
    """The teacher is the student itself, told the answer (a privileged view); it moves as the student moves."""

    card = Card("same-weights")

    def loss(self, batch):
        told, untold = self.teacher(batch)["logits"], self.student(batch)["logits"]
        assert not told.requires_grad
        return Loss.mean("kl", reverse_kl(untold, told))


class Told(nn.Module):
    """Logits of a column; anything else it is given is added as a hint."""

    def __init__(self):
        super().__init__()
        self.body, self.drop, self.hint = nn.Linear(6, 3), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x, a=None):
        return self.drop(self.body(x)) + (self.hint(a) if a is not None else 0)


def test_a_teacher_of_the_same_weights_on_another_view_is_frozen_and_in_eval_mode(tmp_path):
    def made():
        net = Told()
        return SameWeights(), situation(Student(net, view="x"), Teacher(net, view=["x", "a"]), **PLAIN)

    course = survives(made, tmp_path)
    _, where = fresh(made)
    assert torch.equal(course.situation.student.model.hint.weight, where.student.model.hint.weight)  # no gradient there
    assert not torch.equal(course.situation.student.model.body.weight, where.student.model.body.weight)
    assert rows(3, 0, 1).tensors["x"].shape == (3, 6)


def test_without_dropout_the_told_teacher_is_the_same_function_with_the_gradient_stopped(tmp_path):
    def made():
        net = Told()
        net.drop.p = 0.0
        return SameWeights(), situation(Student(net, view="x"), Teacher(net, view=["x", "a"]), **PLAIN)

    course = survives(made, tmp_path)
    method, where = fresh(made)
    settle(method, where)
    net = where.student.model
    for batch in steps(where):
        loss = reverse_kl(net(batch["x"]), net(batch["x"], batch["a"]).detach()).mean()
        for p, grad in zip(net.body.parameters(), torch.autograd.grad(loss, list(net.body.parameters()))):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.body.weight, net.body.weight)
