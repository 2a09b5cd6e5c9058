"""On-policy: the loop of the paper written out, its limits, who writes when, sums with others, a whole run."""

import pytest
import torch
from harness import finish, fresh, steps, survives
from writers import Speaks, Words, distilled, settled, situation

from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.language.rollouts import Sampler
from limbeck.losses import js, reverse_kl
from limbeck.method import Progress
from limbeck.methods.on_policy import OnPolicy
from limbeck.methods.token_kd import TokenKD
from limbeck.objectives import Term
from limbeck.randomness import fold, seeds_for

HOW = {"max_new_tokens": 5}


def at_step(method, step, steps=6):
    object.__setattr__(method, "progress", Progress(step=step, steps=steps, seed=5))
    return method


@pytest.mark.parametrize("micro_batch", ["auto", 3])
@pytest.mark.parametrize("whole", [True, False])
def test_a_training_is_the_loop_of_the_paper(micro_batch, whole, tmp_path):
    """The student writes, both read what it wrote, the mean over written tokens of the divergence is descended."""

    def build():
        method = OnPolicy(divergence="reverse-kl", student_share=1.0, **HOW)
        return method, situation(whole=whole, micro_batch=micro_batch)

    course = survives(build, tmp_path) if micro_batch == "auto" else finish(build)
    _, where = fresh(build)
    ours, theirs = where.student.model, where.teacher.model
    ours.whole = theirs.whole = True
    for step, batch in enumerate(steps(where)):
        found = sample_of(ours, batch, step)
        values = reverse_kl(ours(found["input_ids"]), theirs(found["input_ids"]).detach())
        loss = values[found["answer"]].mean()
        for p, grad in zip(ours.parameters(), torch.autograd.grad(loss, list(ours.parameters())), strict=True):
            p.data -= 0.5 * grad
    for p, expected in zip(course.situation.student.model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


def sample_of(model, batch, step):
    """What the student writes at this step: its rows' seeds, folded with the number of the answer, 0."""
    return Sampler(**HOW)(model, Words(), batch, fold(seeds_for(batch["id"], 5, step), 0))


def test_without_a_share_it_is_token_kd_bit_for_bit():
    found = []
    for method in (OnPolicy(divergence="js", student_share=0.0), TokenKD(divergence="js", beta=0.5)):
        plan, where = fresh(lambda method=method: (method, situation()))
        Course(plan, where).run()
        found.append(where.student.model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_its_own_texts():
    net = Speaks()
    where, method = situation(student=net, teacher=net), OnPolicy(student_share=1.0, **HOW)
    batch = settled(method, where)
    loss = method.loss(at_step(method, 0).draw(batch)).total()
    assert float(loss.detach()) < 1e-6
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, list(net.parameters()))) < 1e-6


def test_a_coin_decides_for_the_whole_step_as_often_as_it_should():
    method = OnPolicy(student_share=0.3, teacher_share=0.5, **HOW)
    batch = settled(method, situation())
    kinds = {"student": 0, "teacher": 0, "data": 0}
    for step in range(200):
        found = at_step(method, step).draw(batch)
        if found is batch:
            kinds["data"] += 1
        else:
            kinds["teacher" if (found["target"] >= 0).any() else "student"] += 1
            assert torch.equal(found["target"] >= 0, found["answer"]) or not (found["target"] >= 0).any()
    assert abs(kinds["student"] / 200 - 0.3) < 0.1
    assert abs(kinds["teacher"] / 200 - 0.35) < 0.1
    assert kinds["data"] > 40


def test_the_share_may_follow_a_schedule():
    method = OnPolicy(student_share={"use": "linear", "start": 0, "end": 1}, **HOW)
    batch = settled(method, situation())
    assert at_step(method, 0).draw(batch) is batch
    assert at_step(method, 6).draw(batch) is not batch


def test_the_teacher_writes_as_the_teacher_speaks():
    method, where = OnPolicy(student_share=0.0, teacher_share=1.0, sampling_temperature=0.0, **HOW), situation()
    batch = settled(method, where)
    found = at_step(method, 0).draw(batch)
    best = where.teacher.model(found["input_ids"]).argmax(-1)
    assert torch.equal(best[found["answer"]], found["target"][found["answer"]])
    assert not torch.equal(found["input_ids"], batch["input_ids"])


def test_there_is_no_right_answer_in_the_students_own_text():
    method, where = OnPolicy(student_share=1.0, task_weight=1.0, **HOW), situation()
    batch = settled(method, where)
    own, given = method.loss(at_step(method, 0).draw(batch)), method.loss(batch)
    assert float(own.parts["task"].sum.detach()) == 0
    assert float(own.parts["js"].sum.detach()) > 0
    assert float(given.parts["task"].sum.detach()) > 0


def test_what_it_is_added_to_reads_the_same_texts():
    def gap(student, teacher, mask):
        return torch.where(mask, (student - teacher).square().sum(-1), 0)

    method, where = OnPolicy(student_share=1.0, **HOW) + Term(gap, mask="answer"), situation()
    batch = settled(method, where)
    found = at_step(method, 3).draw(batch)
    assert torch.equal(found["input_ids"], sample_of(where.student.model, batch, 3)["input_ids"])
    parts = method.loss(found).parts
    z, w = where.student.model(found["input_ids"]), where.teacher.model(found["input_ids"])
    answer = found["answer"]
    torch.testing.assert_close(parts["js"].sum / parts["js"].count, js(z, w)[answer].mean())
    torch.testing.assert_close(parts["gap"].sum / parts["gap"].count, (z - w).square().sum(-1)[answer].mean())


def test_dropout_is_off_while_it_writes_and_on_while_it_learns(tmp_path):
    def build():
        where = situation(student=Speaks(dropout=0.5), micro_batch=3, optimizer="adamw", lr=0.01)
        return OnPolicy(student_share=0.5, **HOW), where

    survives(build, tmp_path)


def test_what_cannot_be_done_is_said():
    where = situation()
    where.teacher.stored = True
    with pytest.raises(RecipeError, match=r"holds answers about the data only\. Use method=forward-kl"):
        settle(OnPolicy(), where)
    where = situation()
    where.student._tokenizer = None
    with pytest.raises(RecipeError, match=r"no tokenizer lies beside it.*student.tokenizer=FOLDER"):
        settle(OnPolicy(), where)
    where.task.name = "classification"
    with pytest.raises(RecipeError, match=r"on-policy continues prompts, and the task is classification.*task=chat"):
        OnPolicy().bind(where.student, where.teacher, where.task).setup()
    with pytest.raises(RecipeError, match="on-policy.max_new_tokens"):
        OnPolicy(max_new_tokens=0)


def test_texts_are_as_long_as_both_can_read():
    """The teacher's positions end before the student's: what the student writes stops there."""

    class Config:
        max_position_embeddings = 6

    where, method = situation(), OnPolicy(student_share=1.0, max_new_tokens=20)
    where.teacher.model.config = Config()
    batch = settled(method, where, 4)
    for name in ("input_ids", "attention_mask", "target", "answer"):
        batch[name] = batch[name][:, :6]
    assert int(at_step(method, 0).draw(batch)["attention_mask"].sum(1).max()) == 6


def test_the_recipe_of_the_documents_runs(tmp_path):
    run = distilled(
        {"use": "on-policy", "divergence": "reverse-kl", "student_share": 1.0, "max_new_tokens": 12}, tmp_path
    )
    assert run.result["status"] == "finished"
