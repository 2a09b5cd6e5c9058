"""MGSR: revisions by the loop written out, the loss written out, the learnt window, restarts, a whole run."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from writers import END, Speaks, Words, distilled, doubled, settled, situation

from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.language.rollouts import Sampler
from limbeck.losses import kl, reverse_kl
from limbeck.losses.windows import neighbours_apart, windowed_kl
from limbeck.method import Progress
from limbeck.methods.mgsr import MGSR
from limbeck.randomness import fold, seeds_for

NEW = 5


def at_step(method, step, steps=6):
    object.__setattr__(method, "progress", Progress(step=step, steps=steps, seed=5))
    return method


def texts(batch):
    return [row[: int(n)].tolist() for row, n in zip(batch["input_ids"], batch["attention_mask"].sum(1))]


def prompts(batch):
    """What stands before the answers of the data."""
    begins = (batch["target"] >= 0).long().argmax(1) + 1
    return [row[: int(n)].tolist() for row, n in zip(batch["input_ids"], begins)]


def by_hand(where, batch, step, corrections, divergence=kl, limit=None):
    """Row by row: write, find the worst wrong token, put the teacher's there, write on."""
    ours, theirs = where.student.model, where.teacher.model
    how = {"max_new_tokens": NEW, **({"context": limit} if limit else {})}
    seeds = seeds_for(batch["id"], 5, step)
    written = texts(Sampler(**how)(ours, Words(), batch, fold(seeds, 0)))
    for number in range(corrections):
        for i, prompt in enumerate(prompts(batch)):
            text = torch.tensor([written[i]])
            z, w = ours(text)[0], theirs(text)[0]
            best = w.argmax(-1)
            apart = divergence(z, w)
            wrong = [j for j in range(len(prompt) - 1, text.shape[1] - 1) if best[j] != text[0, j + 1]]
            if not wrong:
                continue
            j = max(wrong, key=lambda j: apart[j].item())
            kept = [*written[i][: j + 1], int(best[j])]
            end = min(len(prompt) + NEW, limit or 99)
            if kept[-1] != END and len(kept) < end:
                alone = {
                    "input_ids": torch.tensor([kept]),
                    "attention_mask": torch.ones(1, len(kept), dtype=torch.int64),
                    "target": torch.full((1, len(kept)), -100),
                }
                more = Sampler(**how | {"max_new_tokens": end - len(kept)})
                kept = texts(more(ours, Words(), alone, fold(seeds[i : i + 1], number + 1)))[0]
            written[i] = kept
    return written


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("corrections", "worst_by"), [(0, "forward-kl"), (1, "reverse-kl"), (3, "forward-kl")])
def test_texts_are_revised_as_the_paper_says(whole, corrections, worst_by):
    where = doubled(situation(whole=whole))
    method = MGSR(student_share=1.0, corrections=corrections, worst_by=worst_by, max_new_tokens=NEW)
    batch = settled(method, where)
    found = [at_step(method, step).draw(batch) for step in range(3)]
    for model in (where.student.model, where.teacher.model):
        model.whole = True
    divergence = kl if worst_by == "forward-kl" else reverse_kl
    for step, each in enumerate(found):
        assert texts(each) == by_hand(where, batch, step, corrections, divergence)
        assert bool((each["target"] == -100).all())
        for row, prompt, answer in zip(texts(each), prompts(batch), each["answer"]):
            assert row[: len(prompt)] == prompt
            assert answer.nonzero().flatten().tolist() == list(range(len(prompt) - 1, len(row) - 1))


def test_texts_end_where_the_models_do():
    class Config:
        max_position_embeddings = 7

    where, method = situation(), MGSR(student_share=1.0, corrections=2, max_new_tokens=NEW)
    where.teacher.model.config = Config()
    batch = settled(method, where, 4)
    for name in ("input_ids", "attention_mask", "target", "answer"):
        batch[name] = batch[name][:, :7]
    found = at_step(method, 0).draw(batch)
    assert texts(found) == by_hand(where, batch, 0, 2, limit=7)


def test_a_text_of_the_teachers_most_probable_tokens_stays_and_before_the_correction_nothing_changes():
    net = Speaks()
    where = situation(student=net, teacher=net)
    method = MGSR(student_share=1.0, sampling_temperature=0.0, max_new_tokens=NEW)
    batch = settled(method, where)
    assert texts(at_step(method, 0).draw(batch)) == by_hand_greedy(net, batch)
    where, method = situation(), MGSR(student_share=1.0, max_new_tokens=NEW)
    batch = settled(method, where)
    written = at_step(method, 0).by_student(batch)
    at, token = method.worst(written)
    prompt = torch.tensor([len(p) for p in prompts(batch)])
    revised = texts(method.revised(written, prompt, method.seeds(batch, 1)))
    assert bool((at >= 0).any())
    for before, after, j, t in zip(texts(written), revised, at.tolist(), token.tolist()):
        assert after == before if j < 0 else after[: j + 2] == [*before[: j + 1], t]


def by_hand_greedy(net, batch):
    return texts(Sampler(max_new_tokens=NEW, temperature=0.0)(net, Words(), batch, batch["id"]))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("window", [(0.0, 1.0), None])
def test_the_loss_is_the_sum_of_its_levels(whole, window):
    where = doubled(situation(whole=whole))
    method = MGSR(window=window, reads=4, hidden=3, span=2, kl_weight=2.0, span_weight=3.0, task_weight=0.5)
    batch = settled(method, where)
    if window is None:
        method.double()
        torch.nn.init.normal_(method.bounds[2].weight)
    learns = [*where.student.model.parameters(), *method.parameters()]
    loss = method.loss(batch).total()
    found = torch.autograd.grad(loss, learns)
    for model in (where.student.model, where.teacher.model):
        model.whole = True
    z, w = where.student.model(batch["input_ids"]), where.teacher.model(batch["input_ids"]).detach()
    answer = batch["answer"]
    total = 0.5 * F.cross_entropy(z[answer], batch["target"][answer])
    if window is None:
        log_p, ids = w[answer].log_softmax(-1).topk(4)
        heard = torch.cat([log_p, z[answer].detach().log_softmax(-1).gather(-1, ids)], -1)
        low, width = method.bounds(heard).float().sigmoid().unbind(-1)
        low = 1e-4 + (1 - 2e-4) * low
        high = low + (1 - 1e-4 - low) * width
        total = total + 2 * windowed_kl(z[answer], w[answer], low, high, label=batch["target"][answer]).mean()
    else:
        total = total + 2 * kl(z, w)[answer].mean()
    pairs = []
    for row in range(len(z)):
        at = answer[row].nonzero().flatten().tolist()
        for i, j in zip(at[0::2], at[1::2]):  # spans of two: one pair each
            pairs.append(neighbours_apart(z[row, [i]], z[row, [j]], w[row, [i]], w[row, [j]]))
    total = total + 3 * torch.cat(pairs).mean()
    torch.testing.assert_close(loss, total)
    for ours, theirs in zip(found, torch.autograd.grad(total, learns), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)
    if window is None:
        assert all(float(g.abs().max()) > 0 for g in found)


def test_a_learnt_window_begins_nearly_open_and_is_different_for_each_token_later():
    where, method = situation(), MGSR(start=0.02)
    batch = settled(method, where)
    z, w = (a(batch)["logits"][batch["answer"]] for a in (where.student, where.teacher))
    low, high = method.bounds_of(z, w)
    torch.testing.assert_close(low, torch.full_like(low, 0.02), atol=1e-3, rtol=0)
    torch.testing.assert_close(high, torch.full_like(high, 1 - 0.02 + 0.02**2), atol=1e-3, rtol=0)
    torch.nn.init.normal_(method.bounds[2].weight)
    low, high = method.bounds_of(z, w)
    assert low.std().item() > 0
    assert bool((low < high).all())
    torch.nn.init.constant_(method.bounds[2].bias, 1e4)  # at the end of all numbers there still is a gradient, not nan
    loss = method.loss(batch).total()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(method.parameters())))


def test_equal_networks_have_nothing_to_learn():
    net = Speaks()
    where, method = situation(student=net, teacher=net), MGSR(task_weight=0.0, window=(0.1, 0.7), span_top=2)
    loss = method.loss(settled(method, where)).total()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


def test_spans_of_one_token_have_no_neighbours():
    method, where = MGSR(span=1), situation()
    part = method.loss(settled(method, where)).parts["span"]
    assert float(part.sum.detach()) == 0
    assert int(part.count) == 0


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_it_survives_and_the_window_learns(micro_batch, tmp_path):
    def build():
        where = situation(whole=False, micro_batch=micro_batch, epochs=1, lr=0.1)
        return MGSR(student_share=0.6, max_new_tokens=4, hidden=4, reads=3, softness=1.0), where

    course = survives(build, tmp_path)
    state = course.methods[0].state_dict()
    assert {"bounds.0.weight", "bounds.2.bias"} <= state.keys()
    edge = torch.tensor([-1.0, 1.0]) * torch.log(torch.tensor(0.98 / 0.02))
    assert not torch.equal(state["bounds.2.bias"], edge)


def test_what_cannot_be_is_said():
    with pytest.raises(RecipeError, match="the smaller first"):
        settle(MGSR(window=[0.6, 0.2]), situation())
    with pytest.raises(RecipeError, match="mgsr.floor"):
        MGSR(floor=1.0)
    where, method = situation(), MGSR()
    settle(method, where)
    where.teacher.sketches = True
    with pytest.raises(RecipeError, match="some classes are known only"):
        method.setup()


def test_it_runs_from_a_recipe(tmp_path):
    run = distilled({"use": "mgsr", "student_share": 1.0, "max_new_tokens": 6}, tmp_path)
    assert run.result["status"] == "finished"
