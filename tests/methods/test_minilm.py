"""MiniLM, versions 1 and 2: the papers' sums out of what transformers itself computes."""

import math

import pytest
import torch
from harness import survives
from text_folders import encoder, keys, pair, settled, transformers

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.errors import RecipeError
from limbeck.methods.kd import KD
from limbeck.methods.minilm import MiniLM
from limbeck.teachers.mixture import Mixture


def projections(model, reader, texts, layer):
    """Queries, keys and values of one layer by hooks of our own, and the mask."""
    heard = {}
    own = model.bert.encoder.layer[layer - 1].attention.self
    handles = [
        getattr(own, name).register_forward_hook(lambda m, a, out, name=name: heard.update({name: out}))
        for name in ("query", "key", "value")
    ]
    tokens = reader(texts, padding=True, return_tensors="pt")
    model(**tokens)
    for handle in handles:
        handle.remove()
    return [heard[name] for name in ("query", "key", "value")], tokens["attention_mask"].bool()


def relation(a, b, mask, heads):
    a, b = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))
    scores = (a @ b.mT / math.sqrt(a.shape[-1])).masked_fill(~mask[:, None, None, :], -math.inf)
    return scores.softmax(-1)


def divergence(ours, theirs, mask):
    values = torch.where(theirs > 0, theirs * (theirs.log() - ours.clamp(min=1e-300).log()), 0).sum(-1)
    return ((values * mask[:, None]).sum((1, 2)) / (mask.sum(1) * ours.shape[1])).mean()


def test_version_2_is_the_sum_over_queries_keys_and_values_with_heads_cut_anew(tmp_path):
    where = pair(tmp_path)
    method = MiniLM(weight=3.0, task_weight=0.0)
    batch = settled(method, where)
    assert method.parts == 4  # the teacher's; the student has two
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    ours, mask = projections(where.student.model, reader, batch["text"], 2)
    theirs, _ = projections(where.teacher.model, reader, batch["text"], 4)
    assert not mask.all()
    expected = sum(divergence(relation(s, s, mask, 4), relation(t, t, mask, 4), mask) for s, t in zip(ours, theirs))
    loss = method.loss(batch)
    assert list(loss.parts) == ["qq", "kk", "vv"]
    torch.testing.assert_close(loss.total(), 3 * expected)


def test_version_1_is_the_attention_and_the_values(tmp_path):
    """The attention is that which transformers returns where it is asked to."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = Student(encoder(tmp_path / "student", layers=2, width=8, heads=4, seed=1, **still))
    where = pair(tmp_path, student)
    method = MiniLM(relations=["qk", "vv"], student_layer=1, teacher_layer=3, task_weight=0.0)
    batch = settled(method, where)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")(
        batch["text"], padding=True, return_tensors="pt"
    )
    mask, maps = tokens["attention_mask"].bool(), []
    for folder, actor in (("student", where.student), ("teacher", where.teacher)):
        eager = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / folder, attn_implementation="eager", dtype=torch.float64
        ).eval()
        eager.load_state_dict(actor.model.state_dict())
        maps.append(eager(**tokens, output_attentions=True).attentions)
    expected = divergence(maps[0][0], maps[1][2], mask)
    found = method.transfer(where.student(batch), where.teacher(batch), batch).parts["qk"]
    torch.testing.assert_close(found.sum / found.count, expected)


def test_a_copy_of_the_teacher_is_no_distance_away_and_gets_no_gradient(tmp_path):
    where = pair(
        tmp_path, Student(encoder(tmp_path / "teacher", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    )
    method = MiniLM(relations=["qq", "kk", "vv", "qk", "vk"], task_weight=0.0)
    batch = settled(method, where)
    loss = method.loss(batch).total()
    assert loss.abs() < 1e-12
    loss.backward()
    assert max(p.grad.abs().max() for p in where.student.model.parameters() if p.grad is not None) < 1e-9
    assert all(p.grad is None for p in where.teacher.model.parameters())
    assert not list(method.parameters())


def test_padding_is_nothing(tmp_path):
    """A text alone and the same text beside longer ones."""
    where = pair(tmp_path)
    method = MiniLM(task_weight=0.0)
    batch = settled(method, where)
    alone = [method.loss({k: v[i : i + 1] for k, v in batch.items()}).total() for i in range(5)]
    torch.testing.assert_close(method.loss(batch).total(), torch.stack(alone).mean())


def test_layers_below_the_last_stop_the_teacher_early(tmp_path):
    where = pair(tmp_path)
    method = MiniLM(teacher_layer=2)
    settled(method, where)
    assert {name.rpartition(".")[2] for name in method.teacher_reads()} == {"query", "key", "value"}
    ran = []
    where.teacher.model.bert.encoder.layer[2].register_forward_hook(lambda *a: ran.append(1))
    batch = where.data["train"].__getitems__([0, 1])
    method.loss(batch)
    ran.clear()
    method.loss(batch)
    assert not ran


def test_it_runs_and_adds_up_and_survives(tmp_path):
    teacher = str(encoder(tmp_path / "teacher"))
    student = {"model": str(encoder(tmp_path / "student", layers=1, width=8, heads=2))}
    for method in ("minilm", "kd+minilm"):
        run = limbeck.distill(**keys(tmp_path), teacher=teacher, student=student, method=method, out=tmp_path / method)
        told = (run.folder / "log.jsonl").read_text()
        assert '"vv"' in told
    survives(lambda: (KD() + MiniLM(), pair(tmp_path, batch_size=6, epochs=2, steps=None)), tmp_path)


def test_fused_projections_are_split(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.ModernBertConfig(
        vocab_size=14,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        num_labels=2,
        **sizes,
    )
    torch.manual_seed(0)
    modern = transformers.ModernBertForSequenceClassification(config)
    view = {"named": {"input_ids": "text", "attention_mask": "mask"}}
    view["transforms"] = [{"use": "tokenise", "key": "text", "tokenizer": str(tmp_path / "teacher"), "mask": "mask"}]
    encoder(tmp_path / "teacher")
    where = pair(tmp_path, teacher=Teacher(modern, view=view))
    method = MiniLM(task_weight=0.0)
    batch = settled(method, where)
    heard = []
    modern.model.layers[1].attn.Wqkv.register_forward_hook(lambda m, a, out: heard.append(out))
    signals = where.teacher(batch)
    for mine, part in zip(method.theirs.split(signals, method.places[1]), heard[0].chunk(3, -1)):
        assert torch.equal(mine, part)
    assert method.loss(batch).total() > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"relation_heads": 3}, "student's width of 8 cannot be cut into 3 relation heads"),
        ({"teacher_layer": 5}, r"the teacher has layers 0 \(its embeddings\) to 4, not 5"),
        ({"relations": ["qx"]}, "relations"),
    ],
)
def test_what_does_not_fit_is_said(options, sentence, tmp_path):
    with pytest.raises(RecipeError, match=sentence):
        settled(MiniLM(**options), pair(tmp_path))


def test_other_tokens_and_mixtures_are_refused(tmp_path):
    where = pair(tmp_path)
    other = tmp_path / "other"
    encoder(other, layers=1)
    text = (other / "tokenizer.json").read_text().replace('"good": 5', '"good": 6').replace('"bad": 6', '"bad": 5')
    (other / "tokenizer.json").write_text(text)
    with pytest.raises(RecipeError, match="split text differently, and minilm compares token by token"):
        settled(MiniLM(), pair(tmp_path, Student(other)))
    where.teacher = Mixture({"one": where.teacher})
    with pytest.raises(RecipeError, match="minilm looks into the teacher's blocks; given are several teachers"):
        settled(MiniLM(), where)
