"""PS-KD: the loop of the paper, its gradient, its limits, the table over a restart and over pieces, a whole run."""

import pytest
import torch
import torch.nn.functional as F
from harness import fresh, steps, survives
from small_pictures import distilled, pictures, settled, situation

from limbeck.engine.course import Course
from limbeck.errors import RecipeError
from limbeck.method import Outcome, Progress
from limbeck.methods.ps_kd import PSKD
from limbeck.methods.supervised import Supervised
from limbeck.tasks import Task


def first(count=8, epochs=3, **options):
    """A method with its batch, without anything remembered."""
    where, method = situation(teacher=False, epochs=epochs, data=pictures(first=30)), PSKD(**options)
    return method, settled(method, where, count), where


@pytest.mark.parametrize("micro_batch", ["auto", 3])
@pytest.mark.parametrize("share", [0.8, 1.0])
def test_a_training_is_the_published_loop(micro_batch, share, tmp_path):
    def build():
        where = situation(teacher=False, epochs=3, micro_batch=micro_batch, data=pictures(first=30))
        return PSKD(share=share), where

    course = survives(build, tmp_path)
    _, where = fresh(build)
    net, past = where.student.model, F.one_hot(where.data["train"].tensors["label"], 3).float()
    for i, batch in enumerate(steps(where, 3)):
        a = share * (i // 3 + 1) / 3
        rows, onehot = batch["id"] - 30, torch.eye(3)[batch["label"]]
        logits = net(batch["x"])
        target = (1 - a) * onehot + a * past[rows]
        loss = -(target * logits.log_softmax(-1)).sum(-1).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
        past[rows] = logits.detach().softmax(-1)
    torch.testing.assert_close(course.methods[0].past, past, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(course.situation.student.model.head.weight, net.head.weight, rtol=1e-3, atol=1e-5)
    assert course.methods[0].seen.all()


def test_the_gradient_in_the_logits_is_the_difference_to_the_label_less_that_to_the_past():
    torch.manual_seed(0)
    z, y = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1, 1, 2])
    past, a = torch.randn(5, 4, dtype=torch.float64).softmax(-1), 0.3
    onehot, p = torch.eye(4, dtype=torch.float64)[y], z.detach().softmax(-1)
    method, batch, where = first(5)
    where.student.model.head = torch.nn.Identity()

    class Said:
        def __call__(self, batch):
            return {"logits": z}

    object.__setattr__(method, "student", Said())
    loss = method.loss({"id": batch["id"], "ps_kd_target": (1 - a) * onehot + a * past}).total()
    (found,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(found, ((p - onehot) - a * (past - onehot)) / 5)
    loss = method.loss({"id": batch["id"], "ps_kd_target": (1 - a) * onehot + a * p}).total()
    (found,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(found, (1 - a) * (p - onehot) / 5)  # a student that says what it said


def test_without_a_share_it_is_the_cross_entropy_bit_for_bit():
    results = []
    for plan in (lambda: PSKD(share=0.0), Supervised):
        method, where = fresh(lambda plan=plan: (plan(), situation(teacher=False, norm=True)))
        Course(method, where).run()
        results.append(where.student.model.state_dict())
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_in_the_first_epoch_the_labels_are_hard():
    method, batch, _ = first()
    target = method.refined(batch, 0.7)
    assert torch.equal(target, torch.eye(3)[batch["label"]].to(target.dtype) * (0.3 + 0.7))


def test_the_share_grows_to_all_of_it_in_the_last_epoch():
    method, batch, _ = first(share=0.8)
    method.seen[:], method.past[:] = True, torch.tensor([0.0, 0.0, 1.0])
    for epoch, share in enumerate((0.8 / 3, 1.6 / 3, 0.8)):
        update = next(method.learn(batch, Progress(epoch=epoch, epochs=3)))
        zeros = batch["label"] != 2
        torch.testing.assert_close(update.batch["ps_kd_target"][zeros, 2], torch.full((int(zeros.sum()),), share))
        torch.testing.assert_close(update.batch["ps_kd_target"].sum(1), torch.ones(8))


def test_only_rows_that_were_visited_change_and_keep_what_was_said_before_the_step():
    method, batch, where = first(4)
    play = method.learn(batch, Progress(epochs=3))
    update = next(play)
    said = where.student.model(batch["x"]).softmax(-1)
    with torch.no_grad(), pytest.raises(StopIteration):
        play.send(Outcome(record=update.loss(update.batch).record))
    torch.testing.assert_close(method.past[:4], said.detach())
    assert method.seen.tolist() == [True] * 4 + [False] * 18
    assert method.past[4:].abs().max() == 0


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_tables_hold_the_same_to_their_precision(dtype, tmp_path):
    def build(dtype):
        return PSKD(dtype=dtype), situation(teacher=False)

    half = survives(lambda: build(dtype), tmp_path)
    method, where = fresh(lambda: build("fp32"))
    Course(method, where).run()
    assert half.methods[0].past.element_size() == 2
    torch.testing.assert_close(half.methods[0].past.float(), method.past, rtol=1e-2, atol=1e-2)


def test_it_runs_without_a_teacher_from_a_recipe(tmp_path):
    run = distilled({"use": "ps-kd", "dtype": "fp16"}, tmp_path, teacher=False)
    assert run.result["status"] == "finished"


def test_mistakes_are_sentences():
    where = situation(teacher=False)
    where.task = Task("regression", target="label")
    with pytest.raises(RecipeError, match="needs task=classification.*here are regression"):
        settled(PSKD(), where)
    with pytest.raises(RecipeError, match="ps-kd.share"):
        PSKD(share=1.5)
