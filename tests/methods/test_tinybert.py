"""TinyBERT: every part written out from what transformers returns."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from safetensors.torch import load_file
from text_folders import encoder, inside, keys, pair, settled, transformers

import limbeck
from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.methods.tinybert import TinyBERT

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def narrow(tmp_path):
    return pair(tmp_path, Student(encoder(tmp_path / "student", layers=2, width=8, heads=4, seed=1, **STILL)))


def test_every_part_is_the_papers(tmp_path):
    where = narrow(tmp_path)
    method = TinyBERT(weight=2.0, hidden_weight=0.5, attention_weight=0.25, embedding_weight=3.0)
    batch = settled(method, where)
    method.double()
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    ours, mask = inside(where.student.model, reader, batch["text"])
    theirs, _ = inside(where.teacher.model, reader, batch["text"])

    def square(fit, s, t):
        return (fit(s) - t)[mask].square().mean()

    expected = {
        "embedding": square(method.fit_embedding, ours.hidden_states[0], theirs.hidden_states[0]),
        "hidden0": square(method.fit_hidden, ours.hidden_states[1], theirs.hidden_states[2]),
        "hidden1": square(method.fit_hidden, ours.hidden_states[2], theirs.hidden_states[4]),
    }
    p = theirs.logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    expected["prediction"] = (
        F.cross_entropy(ours.logits, p) - entropy
    )  # the soft cross-entropy, the teacher's entropy apart
    for i, layer in enumerate((1, 2)):
        values = []
        for actor, at in ((where.student, layer), (where.teacher, 2 * layer)):
            own = actor.model.bert.encoder.layer[at - 1].attention.self
            hidden = (ours if actor is where.student else theirs).hidden_states[at - 1]
            q, k = (part(hidden).unflatten(-1, (4, -1)).transpose(1, 2) for part in (own.query, own.key))
            values.append(q @ k.mT / q.shape[-1] ** 0.5)
        gap = (values[0] - values[1]).square()
        each = [gap[b][:, mask[b]][:, :, mask[b]].mean() for b in range(len(gap))]
        expected[f"attention{i}"] = torch.stack(each).mean()
    loss = method.loss(batch)
    means = {name: part.sum / part.count for name, part in loss.parts.items()}
    assert means.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(means[name], value, msg=name)
    weights = {"e": 3.0, "h": 0.5, "a": 0.25, "p": 1.0}
    torch.testing.assert_close(loss.total(), 2 * sum(weights[name[0]] * value for name, value in expected.items()))


def test_a_copy_of_the_teacher_has_no_loss_no_maps_and_no_gradient(tmp_path):
    where = pair(tmp_path, Student(encoder(tmp_path / "teacher", **STILL)))
    method = TinyBERT()
    batch = settled(method, where)
    assert not list(method.parameters())
    loss = method.loss(batch)
    assert len(loss.parts) == 1 + 4 + 4 + 1
    assert loss.total().abs() < 1e-20
    loss.total().backward()
    assert max(p.grad.abs().max() for p in where.student.model.parameters() if p.grad is not None) < 1e-12


def test_layers_kept_from_the_teacher_are_its_own_layers_up_to_the_first_gap(tmp_path):
    """A student of the teacher's first two layers is no distance from them."""
    teacher = encoder(tmp_path / "teacher", **STILL)
    where = pair(tmp_path, Student(teacher, layers=[0, 1]))
    method = TinyBERT(layers=[[1, 1], [2, 2]], prediction_weight=0)
    batch = settled(method, where)
    assert method.loss(batch).total().abs() < 1e-20
    shifted = TinyBERT(prediction_weight=0)
    assert settled(shifted, pair(tmp_path, Student(teacher, layers=[0, 1]))) is not None
    assert shifted.loss(batch).total() > 1e-6


def test_padding_is_nothing(tmp_path):
    where = narrow(tmp_path)
    method = TinyBERT()
    batch = settled(method, where)
    method.double()
    parts = [method.loss({k: v[i : i + 1] for k, v in batch.items()}).parts for i in range(5)]
    for name, part in method.loss(batch).parts.items():
        total, count = sum(p[name].sum for p in parts), sum(p[name].count for p in parts)
        torch.testing.assert_close(part.sum / part.count, total / count, msg=name)


def test_without_predictions_the_teacher_stops_at_the_last_layer_compared(tmp_path):
    where = narrow(tmp_path)
    method = TinyBERT(prediction_weight=0, layers=[[2, 3]])
    settled(method, where)
    assert "logits" not in method.teacher_reads()
    ran = []
    where.teacher.model.bert.encoder.layer[3].register_forward_hook(lambda *a: ran.append(1))
    batch = where.data["train"].__getitems__([0, 1])
    method.double()
    method.loss(batch)
    ran.clear()
    assert "prediction" not in method.loss(batch).parts
    assert not ran


def test_it_runs_in_two_stages_leaves_its_maps_behind_and_survives(tmp_path):
    teacher = str(encoder(tmp_path / "teacher"))
    student = {"model": str(encoder(tmp_path / "student", layers=1, width=8, heads=4))}
    stages = [
        {"name": "layers", "method": {"use": "tinybert", "prediction_weight": 0}},
        {"name": "prediction", "method": {"use": "kd", "temperature": 1, "task_weight": 0}},
    ]
    run = limbeck.distill(**keys(tmp_path), teacher=teacher, student=student, stages=stages, out=tmp_path / "run")
    shipped = load_file(run.folder / "student" / "model.safetensors")
    assert shipped.keys() == load_file(tmp_path / "student" / "model.safetensors").keys()
    survives(lambda: (TinyBERT(), _float(narrow(tmp_path))), tmp_path)


def _float(where):
    for actor in (where.student, where.teacher):
        actor.model.float()
    return where


def test_what_does_not_fit_is_said(tmp_path):
    with pytest.raises(RecipeError, match="the student has 2 heads, the teacher 4.*attention_weight=0"):
        settled(TinyBERT(), pair(tmp_path))
    settled(TinyBERT(attention_weight=0), pair(tmp_path))
    with pytest.raises(RecipeError, match=r"the teacher has layers 0 .* to 4, not 7"):
        settled(TinyBERT(layers=[[1, 7]]), narrow(tmp_path))
    deep = Student(encoder(tmp_path / "deep", layers=5, heads=4, **STILL))
    with pytest.raises(RecipeError, match=r"student has 5 layers, the teacher 4: pair them"):
        settled(TinyBERT(), pair(tmp_path, deep))
