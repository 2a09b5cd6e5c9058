"""DDAE++: the loop by hand, its parts switched off, who has gradients, order and pieces, views and times, whole runs, shipped students."""

import json
import sys
from pathlib import Path

import pytest
import torch
from harness import finish, fresh, steps, survives
from points import descend, network, points, same, settled, situation
from torch.nn import functional as F

import limbeck
from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.diffusion.augmenting import moved
from limbeck.engine.course import Course, settle
from limbeck.errors import RecipeError
from limbeck.methods.ddae import DDAE
from limbeck.methods.denoise import Denoising
from limbeck.models.toy import PictureDenoiser

KINDS = ["mirror", "turn", "zoom", "shift_x", "shift_y"]
MOST = {"mirror": 1.0, "turn": 0.05, "zoom": 0.2, "shift_x": 0.125, "shift_y": 0.125}


def alone(**options):
    """The method with a student and no teacher."""
    return situation(teacher=False, **({"lr": 0.02} | options))


def drawn_by_hand(x):
    """A view as the method draws it: a number per kind, noise, a time."""
    n, numbers = len(x), {}
    for kind in KINDS:
        used = torch.rand(n) < 0.5
        numbers[kind] = used.float() if kind == "mirror" else used * MOST[kind] * (2 * torch.rand(n) - 1)
    eps, t = torch.randn(n, 2), torch.rand(n).clamp(1e-3, 1)
    return {"x": moved(x, numbers), "numbers": numbers, "eps": eps, "t": t}


def test_a_training_is_denoising_and_moco_v3_as_one_would_write_them():
    def build():
        options = {"contrastive": 0.5, "temperature": 0.3, "rescaled": True, "cleaner": 0.8, "ema": 0.9, "width": 4}
        return DDAE(**options, augment={"chance": 0.5}), alone()

    course = finish(build)

    method, where = fresh(build)
    settle(method, where)
    net, past, sides, hidden = where.student.model, method.target, method.sides, []
    for one in (net, past):
        one.hidden[0].register_forward_hook(lambda m, args, out: hidden.append(out))

    def said(one, view, t, label):
        hidden.clear()
        x_t = (1 - t[:, None]) * view["x"] + t[:, None] * view["eps"]
        return one.predict(x_t, t, condition=label, **view["numbers"]), hidden[0]

    learns = [*net.parameters(), *sides.query.parameters(), *sides.predictor.parameters()]
    for batch in steps(where):
        one, two = views = [drawn_by_hand(batch["x"]) for _ in range(2)]
        one["clean"] = (0.8 * torch.rand(len(batch["x"])) * two["t"]).clamp(1e-3, 1)
        two["clean"] = (0.8 * torch.rand(len(batch["x"])) * one["t"]).clamp(1e-3, 1)
        label = torch.where(torch.rand(len(batch["x"])) < 0.1, 3, batch["label"])
        v, first = said(net, one, one["t"], label)
        loss = (v - (one["eps"] - one["x"])).square().mean()
        for p, other in ((first, two), (said(net, two, two["t"], label)[1], one)):
            with torch.no_grad():
                key = sides.key(said(past, other, other["clean"], label)[1])
            logits = F.normalize(sides.predictor(sides.query(p))) @ F.normalize(key).T / 0.3
            loss = loss + 0.5 * 2 * 0.3 * F.cross_entropy(logits, torch.arange(len(logits)))
        descend(learns, loss, 0.02)
        with torch.no_grad():
            for theirs, ours in ((past, net), (sides.key, sides.query)):
                for a, b in zip(theirs.parameters(), ours.parameters()):
                    a.copy_(0.9 * a + 0.1 * b)
    assert len(views) == 2
    same(course.situation.student.model, net)
    same(course.methods[0].target, past)
    same(course.methods[0].sides, sides)
    assert net.route.map.weight.abs().max() > 0


def test_with_everything_switched_off_it_is_denoising_to_the_bit():
    off = {"self_condition": False, "contrastive": 0.0, "augment": None}
    ours, plain = finish(lambda: (DDAE(**off), alone())), finish(lambda: (Denoising(), alone()))
    found, expected = (c.situation.student.model.state_dict() for c in (ours, plain))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_everything_that_is_kept_survives_a_kill(tmp_path):
    course = survives(lambda: (DDAE(width=4), alone(optimizer="adamw", lr=1e-2, epochs=1)), tmp_path)
    kept = course.methods[0].state_dict()
    assert any(name.startswith("target.route.map") for name in kept)
    assert {name.split(".")[1] for name in kept if name.startswith("sides.")} == {"query", "predictor", "key"}


def ready(method, where):
    """The batch of an update, as `learn` yields it."""
    batch = settled(method, where)
    return next(method.learn(batch, method.progress)).batch


def test_at_first_the_student_says_what_it_would_have_said():
    where = alone()
    before = where.student.model.predict(torch.ones(2, 2), torch.tensor([0.2, 0.9]), condition=torch.tensor([0, 3]))
    settle(DDAE(), where)
    net = where.student.model
    told = {kind: torch.full((2,), 0.1) for kind in KINDS}
    for numbers in ({}, told):
        after = net.predict(torch.ones(2, 2), torch.tensor([0.2, 0.9]), condition=torch.tensor([0, 3]), **numbers)
        assert torch.equal(after, before)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_past_has_no_gradient_and_the_student_has_one(symmetric):
    where, method = alone(), DDAE(symmetric=symmetric)
    method.loss(ready(method, where)).total().backward()
    assert all(p.grad is None for p in [*method.target.parameters(), *method.sides.key.parameters()])
    net = where.student.model
    for p in (
        net.inputs.weight,
        net.route.map.weight,
        net.numbers.layers["turn"].weight,
        *method.sides.query.parameters(),
    ):
        assert p.grad.abs().max() > 0
    assert {id(p) for group in method.trainees()["student"] for p in group.parameters()} == {
        id(p) for p in [*net.parameters(), *method.sides.query.parameters(), *method.sides.predictor.parameters()]
    }


def test_one_side_asks_once_and_both_twice():
    where, method = alone(), DDAE(symmetric=False)
    batch = ready(method, where)
    one = method.loss(batch)
    assert set(one.parts) == {"denoising", "contrast"}
    assert set(one.parts["contrast"].tensors) == {"ask0", "answer0"}
    object.__setattr__(method, "symmetric", True)
    both = method.loss(batch)
    assert set(both.parts["contrast"].tensors) == {"ask0", "answer0", "ask1", "answer1"}
    for name in ("ask0", "answer0"):
        assert torch.equal(both.parts["contrast"].tensors[name], one.parts["contrast"].tensors[name])
    torch.testing.assert_close(both.parts["denoising"].sum, one.parts["denoising"].sum)


def test_the_order_of_a_batch_is_that_of_its_vectors_and_changes_no_loss():
    where, method = alone(), DDAE()
    batch = ready(method, where)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    other = {name: v[order] if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
    plain, turned = method.loss(batch), method.loss(other)
    vectors, permuted = (loss.parts["contrast"].tensors for loss in (plain, turned))
    for ask, answer in (("ask0", "answer0"), ("ask1", "answer1")):
        logits = F.normalize(vectors[ask]) @ F.normalize(vectors[answer]).T
        found = F.normalize(permuted[ask]) @ F.normalize(permuted[answer]).T
        torch.testing.assert_close(found, logits[order][:, order])
    torch.testing.assert_close(turned.total(), plain.total())


def test_the_candidates_are_the_whole_batch_however_it_is_cut():
    courses = [finish(lambda m=m: (DDAE(), alone(micro_batch=m))) for m in ("auto", 3)]
    same(*(course.situation.student.model for course in courses))


def test_the_past_sees_the_other_view_cleaner():
    for cleaner in (1.0, 0.25, 0.0):
        where, method = alone(), DDAE(cleaner=cleaner)
        batch = ready(method, where)
        for k in (0, 1):
            limit = (cleaner * batch[f"view{1 - k}.time"]).clamp(min=1e-3)
            assert (batch[f"view{k}.cleaner"] <= limit).all()
            assert (batch[f"view{k}.cleaner"] >= 1e-3).all()
    assert (batch["view0.cleaner"] == 1e-3).all()
    asked = []
    method.target.register_forward_pre_hook(lambda m, args, kwargs: asked.append(kwargs["time"]), with_kwargs=True)
    method.loss(batch)
    assert len(asked) == 2


def test_views_differ_and_tell_by_how_much_and_validation_and_samples_are_not_augmented():
    where, method = alone(), DDAE(augment={"chance": 1.0})
    batch = ready(method, where)
    for k in (0, 1):
        numbers = {kind: batch[f"view{k}.student.{kind}"] for kind in KINDS}
        torch.testing.assert_close(batch[f"view{k}.x0"], moved(batch["x0"], numbers))
    assert not torch.equal(batch["view0.x0"], batch["view1.x0"])
    net, heard = where.student.model, []
    net.time.register_forward_hook(lambda *a: heard.append({k: v.clone() for k, v in net.numbers.values.items()}))
    method.selection(where.data.splits["validation"].__getitems__([0, 1]))
    net(torch.zeros(1, 2), torch.tensor([0]))
    assert heard
    assert all(set(told) == set(KINDS) and all((v == 0).all() for v in told.values()) for told in heard)
    heard.clear()
    method.loss(batch)
    torch.testing.assert_close(heard[0]["turn"], batch["view0.student.turn"])
    torch.testing.assert_close(heard[1]["turn"], batch["view1.student.turn"])


def test_a_dropped_label_is_dropped_everywhere():
    where, method = alone(), DDAE(drop=1.0)
    batch = ready(method, where)
    assert batch["drop"].all()
    whole = method.loss(batch)
    other = method.loss(batch | {"student.condition": batch["student.condition"].flip(0)})
    for name, part in whole.parts["contrast"].tensors.items():
        torch.testing.assert_close(other.parts["contrast"].tensors[name], part)
    torch.testing.assert_close(other.total(), whole.total())


def test_without_self_conditioning_the_network_is_as_it_was():
    where, method = alone(), DDAE(self_condition=False, augment=None)
    ready(method, where)
    assert not hasattr(where.student.model, "route")
    assert [done["by"].split(":")[1] for done in where.student.source.surgery] == ["sample_with"]
    batch, asked = ready(method, where), []
    where.student.model.output.register_forward_hook(lambda *a: asked.append(1))
    method.loss(batch)
    assert len(asked) == 1  # the second view ends at the layer


def test_what_cannot_be_is_refused_before_the_first_step():
    with pytest.raises(RecipeError, match="an earlier one"):
        settle(DDAE(layer="hidden.1"), alone())
    for layer, said in (("hidden.7", "no tensor is given there"), ("nothing", "no such place")):
        with pytest.raises(RecipeError, match=said):
            settle(DDAE(layer=layer), alone())
    with pytest.raises(RecipeError, match="augment"):
        settle(DDAE(augment={"tilt": 1}), alone())
    line = Data({"train": TensorSplit({"x": torch.randn(8, 1)})}, {"x": ""}, source="line")
    with pytest.raises(RecipeError, match="method.augment=null"):
        settle(DDAE(), alone(student=network(classes=None, dims=1), data=line))
    settle(DDAE(augment=None), alone(student=network(classes=None, dims=1), data=line))


def test_a_further_stage_goes_on_with_the_same_network():
    torch.manual_seed(0)
    where = alone(epochs=1)
    for _ in range(2):
        Course(DDAE(width=4), where).run()
    assert sum(done["by"].endswith(":condition") for done in where.student.source.surgery) == 2
    assert len(where.student.model.hidden[0]._forward_hooks) <= 3  # one that listens, one that hears, and the tap


def test_of_pictures_the_middle_is_heard_and_learns():
    g = torch.Generator().manual_seed(0)
    split = TensorSplit({"image": torch.randn(12, 1, 8, 8, generator=g)})
    data = Data({"train": split, "validation": split}, {"image": ""}, source="pictures")
    torch.manual_seed(0)
    where = situation(teacher=False, student=PictureDenoiser(width=8), data=data, epochs=1, batch_size=6)
    where.student.view = None
    where.student.look_at(["image", "id"])
    method = DDAE(width=4, augment={"chance": 1.0})
    course = Course(method, where)
    course.run()
    assert method.heard == "inner.1"
    assert where.student.model.route.map.weight.shape == (32, 16)
    assert where.student.model.route.map.weight.abs().max() > 0


def recipe(data, student, **changes):
    return {
        "task": "generation",
        "data": data,
        "student": student,
        "method": {"use": "ddae", "sampling_steps": 3, "augment": {"chance": 0.5}, "width": 8},
        "train": {"steps": 3, "batch_size": 8, "lr": 1e-2},
        "control": "none",
        "seed": 1,
    } | changes


def in_three(columns, label, names):
    parts = {"train": (0, 24), "validation": (24, 36), "test": (36, 48)}
    splits = {k: TensorSplit({n: c[a:b] for n, c in columns.items()} | {"label": label[a:b]}, a) for k, (a, b) in parts.items()}  # fmt: skip
    return Data(splits, {n: n for n in columns} | {"label": ""}, {"label": names}, source="rows")


def some_points():
    rows = points(24)["train"].tensors, points(24)["validation"].tensors
    x, label = (torch.cat([part[name] for part in rows]) for name in ("x", "label"))
    return in_three({"x": x}, label, ["a", "b", "c"])


def some_pictures():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (48,), generator=g)
    return in_three({"image": torch.randn(48, 1, 8, 8, generator=g) * 0.3 + label.view(-1, 1, 1, 1)}, label, ["a", "b"])


@pytest.mark.parametrize(
    ("data", "student"),
    [
        (some_points, {"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8}}),
        (some_pictures, {"model": "limbeck.models.toy:PictureDenoiser", "args": {"width": 8, "classes": 2}}),
    ],
)
def test_a_whole_run_ships_a_student_that_samples_the_same(data, student, tmp_path):
    run = limbeck.distill(**recipe(data, student), out=tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["method"] == "ddae"
    assert result["student"]["figures"]["evaluations"] == 5
    shipped = Student(run.folder)
    surgery = [done["by"].split(":")[1] for done in shipped.source.surgery]
    assert surgery == ["hear", "condition", "sample_with"]
    assert shipped.model.route.map.weight.abs().max() > 0
    from safetensors.torch import load_file

    batch = data()["test"].__getitems__(list(range(12)))
    kept = load_file(run.folder / "predictions.safetensors")["student.outputs"]
    made = shipped(batch)["generated"].flatten(1)
    torch.testing.assert_close(made, kept[:, : made.shape[1]])
    with torch.no_grad():
        shipped.model.route.map.weight.zero_()
    assert not torch.allclose(shipped(batch)["generated"].flatten(1), made)  # what it is told matters
    from limbeck.evaluation.probe import probe

    found = probe(Student(run.folder), data(), [shipped.model.route.layer], [0.1, 0.5])
    assert 0 <= found["test"] <= 1


def test_a_unet_of_diffusers_learns_and_ships(tmp_path):
    pytest.importorskip("diffusers")
    sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "adapters"))
    import pipelines

    def pictures():
        data = some_pictures()
        for split in data.splits.values():
            split.tensors["image"] = split.tensors["image"].sigmoid()
        return data

    student = str(pipelines.pixels(tmp_path / "unet"))
    method = {"use": "ddae", "sampling_steps": 1, "solver": "ddim", "start": 0.9, "width": 4}
    train = {"steps": 1, "batch_size": 8, "lr": 1e-2}
    run = limbeck.distill(**recipe(pictures, student, method=method, train=train), out=tmp_path / "run")
    shipped = Student(run.folder)
    assert shipped.model.route.layer == "network.mid_block"
    batch = pictures()["test"].__getitems__([0, 1])
    from safetensors.torch import load_file

    kept = load_file(run.folder / "predictions.safetensors")["student.outputs"][:2, :64]
    torch.testing.assert_close(shipped(batch)["generated"].flatten(1), kept, rtol=1e-3, atol=1e-4)
