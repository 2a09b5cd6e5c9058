"""SeqKD: the teacher's mode is learnt, each prompt is answered once, and a teacher sure of one text makes it word-level KL."""

import pytest
import torch
import torch.nn.functional as F
from harness import finish, fresh, steps, survives
from torch import nn
from writers import END, SIZE, Words, distilled, folders, settled, situation

from limbeck import Student, Task, Teacher, load_data
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.language.reading import read
from limbeck.language.rollouts import Sampler, sample
from limbeck.language.writing import Answers, writer
from limbeck.losses import kl
from limbeck.memories import Entries
from limbeck.method import Progress
from limbeck.methods.seq_kd import SeqKD
from limbeck.methods.token_kd import ForwardKL
from limbeck.randomness import seeds_for
from limbeck.teachers.mixture import Mixture

HOW = {"max_new_tokens": 4}


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_a_training_is_cross_entropy_on_the_teachers_mode(micro_batch, tmp_path):
    def build():
        return SeqKD(**HOW), situation(micro_batch=micro_batch)

    course = survives(build, tmp_path) if micro_batch == "auto" else finish(build)
    _, where = fresh(lambda: (SeqKD(**HOW), situation()))
    ours, theirs = where.student.model, where.teacher.model
    for batch in steps(where):
        told = sample(theirs, Words(), batch, temperature=0, **HOW)
        loss = F.cross_entropy(ours(told["input_ids"])[told["answer"]], told["target"][told["answer"]])
        for p, grad in zip(ours.parameters(), torch.autograd.grad(loss, list(ours.parameters())), strict=True):
            p.data -= 0.5 * grad
    for p, expected in zip(course.situation.student.model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


class Sure(nn.Module):
    """Every word is followed by the next one, the last by the end, with probability one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids):
        after = torch.where(input_ids == SIZE - 1, END, (input_ids + 1).clamp(max=SIZE - 1))
        return F.one_hot(after, SIZE) * 200.0 * self.scale


def test_of_a_teacher_that_is_sure_of_one_text_it_is_word_level_kl_on_it():
    where, method = situation(teacher=Sure()), SeqKD(**HOW)
    batch = settled(method, where)
    found = method.draw(batch)
    z, w = where.student.model(found["input_ids"]), where.teacher.model(found["input_ids"])
    answer = found["answer"]
    torch.testing.assert_close(method.loss(found).total(), kl(z, w)[answer].mean())
    assert torch.equal(found["target"][answer], w.argmax(-1)[answer])


def test_every_prompt_is_answered_once():
    where, method = situation(), SeqKD(**HOW)
    batch, calls = settled(method, where), []
    where.teacher.model.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    first = method.draw(batch)
    assert 0 < len(calls) <= 4
    calls.clear()
    again = method.draw(batch)
    assert not calls
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = where.data["train"].__getitems__([6, 7, 8, 9])
    method.draw(other)
    assert set(calls) == {2}  # rows 6 and 7 are known


def test_answers_do_not_depend_on_the_batch_they_were_asked_in():
    """At a temperature above 0 too: the seed is the row's own, and not the step's."""
    found = []
    for cut in (8, 3):
        where, method = situation(), SeqKD(sampling_temperature=1.0, **HOW)
        settled(method, where)
        for step, start in enumerate(range(0, 8, cut)):
            object.__setattr__(method, "progress", Progress(step=step, steps=9, seed=5))
            method.draw(where.data["train"].__getitems__(list(range(start, min(start + cut, 8)))))
        found.append(method.answers.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_it_is_added_to_reads_the_teachers_texts():
    where, method = situation(), SeqKD(**HOW) + ForwardKL()
    found = method.draw(settled(method, where))
    expected = sample(
        where.teacher.model, Words(), where.data["train"].__getitems__(list(range(8))), temperature=0, **HOW
    )
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert set(method.loss(found).parts) == {"task", "forward-kl"}


def test_answers_by_period():
    """Asked for anew in the next period, kept within one; a row that is a ghost keeps nothing."""
    data = situation().data["train"]
    answers, asked = Answers(Entries.of(data), 4), []
    batch = data.__getitems__([3, 5])

    def write(rows):
        asked.append(rows["id"].tolist())
        return Sampler(max_new_tokens=4)(situation().teacher.model, Words(), rows, seeds_for(rows["id"], len(asked), 0))

    answers.renew(batch, 0, write)
    answers.renew(batch, 0, write)
    answers.renew(data.__getitems__([5, 6]), 0, write)
    assert asked == [[3, 5], [6]]
    before = answers.ids.clone()
    answers.renew(batch, 1, write)
    assert asked[-1] == [3, 5]
    assert not torch.equal(answers.ids[[3, 5]], before[[3, 5]])
    answers.renew({**data.__getitems__([9]), "ghost": True}, 0, write)
    assert int(answers.since[9]) == -1


def test_who_cannot_write_is_told():
    where = situation()
    where.teacher = Mixture({"one": where.teacher, "two": situation().teacher})
    with pytest.raises(RecipeError, match="a mixture of teachers is to write, and only one model can"):
        writer(where.teacher)
    with pytest.raises(RecipeError, match="there is no network of it here"):
        writer(situation(teacher=nn.Identity()).teacher)
    where = situation()
    where.teacher.stored = True
    with pytest.raises(RecipeError, match="seq-kd learns what a teacher writes, and there is none"):
        SeqKD().bind(where.student, None, where.task).setup()
    with pytest.raises(RecipeError, match="seq-kd asks the teacher about texts that are written"):
        settle(SeqKD(), where)


@pytest.mark.parametrize("student", ["student", "other"])
def test_it_runs_with_the_same_and_with_another_tokenizer(student, tmp_path):
    run = distilled({"use": "seq-kd", "max_new_tokens": 10}, tmp_path, student=student)
    assert run.result["status"] == "finished"


def test_an_answer_crosses_tokenizers_by_its_text(tmp_path):
    """What the student is shown decodes to what the teacher wrote, its end included."""
    at = folders(tmp_path)
    student, teacher = Student(str(at["other"])), Teacher(str(at["teacher"]))
    data = read(load_data(str(at["data"])), student.tokenizer, teacher.tokenizer, task="chat")
    batch = data.splits["train"].__getitems__([0, 1, 2, 3])
    method = SeqKD(max_new_tokens=12).bind(student, teacher, Task("chat"))
    found = method.by_teacher(batch, batch["id"], max_new_tokens=200)
    own = sample(teacher.model, teacher.tokenizer, teacher.own(batch), temperature=0, max_new_tokens=200, seed=0)
    for i in range(4):
        told, said = (b["target"][i][b["answer"][i]].tolist() for b in (own, found))
        theirs, mine = teacher.tokenizer, student.tokenizer
        assert (told[-1] in theirs.eos) == (said[-1] in mine.eos)
        spelt = [t.decode([x for x in ids if x not in t.eos]) for t, ids in ((theirs, told), (mine, said))]
        assert spelt[1].startswith(spelt[0][: len(spelt[1])])
        assert len(said) == 200 or spelt[0] == spelt[1]
        prompt = int(batch["answer"][i].long().argmax()) + 1
        assert torch.equal(found["input_ids"][i, :prompt], batch["input_ids"][i, :prompt])
