"""DistillSpec: the four divergences, a mean per text before the mean over texts, on the draft's own texts; a whole run."""

import pytest
import torch
from harness import finish, fresh, steps, survives
from writers import Words, distilled, settled, situation

from limbeck.errors import RecipeError
from limbeck.language.rollouts import Sampler
from limbeck.losses import js, kl, reverse_kl
from limbeck.losses.token_divergences import tvd
from limbeck.method import Progress
from limbeck.methods.distillspec import DistillSpec
from limbeck.randomness import fold, seeds_for

FORMULAS = {"forward-kl": kl, "reverse-kl": reverse_kl, "js": js, "tvd": tvd}
HOW = {"max_new_tokens": 5}


def of_texts(values, answer):
    """The definition: the mean of every text that counts, then their mean."""
    return torch.stack([row[mask].mean() for row, mask in zip(values, answer) if mask.any()]).mean()


@pytest.mark.parametrize("divergence", FORMULAS)
@pytest.mark.parametrize("whole", [True, False])
def test_every_text_counts_the_same_however_long(divergence, whole):
    where = situation(whole=whole)
    method = DistillSpec(divergence=divergence, student_share=0.0)
    batch = settled(method, where)
    loss = method.loss(method.draw(batch)).total()
    found = torch.autograd.grad(loss, list(where.student.model.parameters()))
    where.student.model.whole = where.teacher.model.whole = True
    z, w = where.student.model(batch["input_ids"]), where.teacher.model(batch["input_ids"]).detach()
    expected = of_texts(FORMULAS[divergence](z, w), batch["answer"])
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(found, torch.autograd.grad(expected, list(where.student.model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(expected, FORMULAS[divergence](z, w)[batch["answer"]].mean())  # lengths differ here


def test_one_minus_tvd_is_the_mean_acceptance_of_the_texts():
    where = situation()
    method = DistillSpec(divergence="tvd", student_share=0.0)
    batch = settled(method, where)
    p, q = (actor.model(batch["input_ids"]).softmax(-1) for actor in (where.teacher, where.student))
    accepted = of_texts(torch.minimum(p, q).sum(-1), batch["answer"])
    torch.testing.assert_close(1 - method.loss(method.draw(batch)).total(), accepted)


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_a_training_is_the_loop_of_the_paper(micro_batch, tmp_path):
    def build():
        return DistillSpec(divergence="js", **HOW), situation(micro_batch=micro_batch)

    course = survives(build, tmp_path) if micro_batch == "auto" else finish(build)
    _, where = fresh(build)
    ours, theirs = where.student.model, where.teacher.model
    for step, batch in enumerate(steps(where)):
        seeds = fold(seeds_for(batch["id"], 5, step), 0)
        found = Sampler(**HOW)(ours, Words(), batch, seeds)
        values = js(ours(found["input_ids"]), theirs(found["input_ids"]).detach())
        loss = of_texts(values, found["answer"])
        for p, grad in zip(ours.parameters(), torch.autograd.grad(loss, list(ours.parameters())), strict=True):
            p.data -= 0.5 * grad
    for p, expected in zip(course.situation.student.model.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)


def test_the_draft_the_target_or_the_data_write():
    where = situation()
    kinds = {}
    for name, shares in (("draft", (1, 0)), ("target", (0, 1)), ("data", (0, 0))):
        method = DistillSpec(student_share=shares[0], teacher_share=shares[1], **HOW)
        batch = settled(method, where)
        object.__setattr__(method, "progress", Progress(step=2, steps=6, seed=5))
        kinds[name] = method.draw(batch)
    assert torch.equal(kinds["data"]["input_ids"], batch["input_ids"])
    assert (kinds["draft"]["target"] == -100).all()
    assert torch.equal(kinds["target"]["target"] >= 0, kinds["target"]["answer"])


def test_tvd_says_that_it_wants_a_warm_start():
    for divergence in FORMULAS:
        method = DistillSpec(divergence=divergence)
        settled(method, situation())
        assert any("forward-kl" in notice for notice in method.notices) == (divergence == "tvd")
    far, near = (torch.tensor([[0.0, 0.0, x]], dtype=torch.float64, requires_grad=True) for x in (40.0, 1.0))
    target = torch.tensor([[3.0, 3.0, -40.0]], dtype=torch.float64)
    for z, flat in ((far, True), (near, False)):
        (gradient,) = torch.autograd.grad(tvd(z, target).sum(), z)
        assert bool(gradient.abs().max() < 1e-12) == flat


def test_other_divergences_are_refused():
    with pytest.raises(RecipeError, match=r"distillspec\.divergence"):
        DistillSpec(divergence="adaptive-kl")


def test_it_runs_from_a_recipe_and_is_measured_as_a_draft(tmp_path):
    run = distilled({"use": "distillspec", "divergence": "tvd", "max_new_tokens": 8}, tmp_path)
    assert run.result["status"] == "finished"
    figures = run.evaluate(["speculative"])["figures"]
    assert 0 < figures["acceptance"] < 1
    assert 1 <= figures["block_efficiency"] <= 5
    assert figures["speedup"] > 0
