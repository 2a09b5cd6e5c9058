"""DistilBERT: on classes and on masked words, as its sum says."""

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from text_folders import encoder, inside, keys, pair, settled, transformers

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.methods.distilbert import DistilBERT

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_on_classes_it_is_soft_targets_labels_and_the_cosine_over_tokens(tmp_path):
    where = pair(tmp_path, Student(encoder(tmp_path / "student", layers=2, heads=4, seed=1, **STILL)))
    method = DistilBERT()
    batch = settled(method, where)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "teacher")
    ours, mask = inside(where.student.model, reader, batch["text"])
    theirs, _ = inside(where.teacher.model, reader, batch["text"])
    p, log_q = (theirs.logits / 2).softmax(-1), (ours.logits / 2).log_softmax(-1)
    soft = 4 * (p * (p.log() - log_q)).sum(-1).mean()
    one = torch.ones(int(mask.sum()), dtype=torch.float64)
    turned = F.cosine_embedding_loss(ours.hidden_states[-1][mask], theirs.hidden_states[-1][mask], one)
    expected = 5 * soft + turned + 2 * F.cross_entropy(ours.logits, batch["label"])
    torch.testing.assert_close(method.loss(batch).total(), expected)
    assert not list(method.parameters())


def test_a_copy_of_the_teacher_has_the_tasks_gradient_alone(tmp_path):
    where = pair(tmp_path, Student(encoder(tmp_path / "teacher", **STILL)))
    method = DistilBERT(task_weight=0.0)
    batch = settled(method, where)
    loss = method.loss(batch).total()
    assert loss.abs() < 1e-20
    loss.backward()
    assert max(p.grad.abs().max() for p in where.student.model.parameters() if p.grad is not None) < 1e-12


def test_another_width_goes_through_a_map_that_learns(tmp_path):
    where = pair(tmp_path)
    method = DistilBERT(task_weight=0.0, soft_weight=0.0)
    batch = settled(method, where)
    method.double()
    assert method.fit.map.weight.shape == (16, 8)
    method.loss(batch).total().backward()
    assert method.fit.map.weight.grad.abs().sum() > 0


def masked(model, view=("input_ids", "attention_mask")):
    return {"named": {name: name for name in view}}


def words(rows: int = 12) -> Data:
    """Token numbers of which some are masked (4), their targets beside them."""
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 14, (rows, 6), generator=drawn)
    mask = torch.arange(6) < torch.randint(3, 7, (rows, 1), generator=drawn)
    hidden = mask & (torch.rand(rows, 6, generator=drawn) < 0.4)
    hidden[:, 0] = True
    columns = {
        "input_ids": tokens.masked_fill(hidden, 4).masked_fill(~mask, 0),
        "attention_mask": mask.long(),
        "target": tokens.masked_fill(~hidden, -100),
        "answer": hidden,
        "answer_bytes": hidden.sum(1),
    }
    split = TensorSplit(columns)
    return Data({"train": split, "validation": split}, dict.fromkeys(columns, ""), {}, source="words")


def language_models(tmp_path):
    made = []
    for seed, layers in ((0, 4), (1, 2)):
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=14,
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=16,
            **STILL,
        )
        made.append(transformers.BertForMaskedLM(config))
        made[-1].save_pretrained(tmp_path / f"{layers}")
    return made


@pytest.mark.parametrize("mask", [None, "answer"])
def test_on_masked_words_soft_targets_are_of_all_attended_tokens_or_of_the_masked_ones(mask, tmp_path):
    big, small = (model.double() for model in language_models(tmp_path))
    where = pair(tmp_path, Student(small, view=masked(small)), Teacher(big, view=masked(big)))
    where.data, where.task = words(), limbeck.Task("text")
    method = DistilBERT(mask=mask)
    batch = settled(method, where)
    shown = {name: batch[name] for name in ("input_ids", "attention_mask")}
    big.eval()
    ours, theirs = small(**shown, output_hidden_states=True), big(**shown, output_hidden_states=True)
    attended = batch["attention_mask"].bool()
    rows = attended if mask is None else batch["answer"]
    p, log_q = (theirs.logits[rows] / 2).softmax(-1), (ours.logits[rows] / 2).log_softmax(-1)
    soft = 4 * F.kl_div(log_q, p, reduction="batchmean")  # divides by the tokens, not by the texts
    turned = 1 - F.cosine_similarity(ours.hidden_states[-1][attended], theirs.hidden_states[-1][attended]).mean()
    task = F.cross_entropy(ours.logits.transpose(1, 2), batch["target"])
    torch.testing.assert_close(method.loss(batch).total(), 5 * soft + turned + 2 * task)


def test_it_runs_on_classes_and_on_masked_words_with_layers_of_the_teacher_and_survives(tmp_path):
    teacher = str(encoder(tmp_path / "teacher"))
    alternate = {"of": teacher, "layers": 2, "choose": "alternate"}
    student = {"model": "limbeck.models.shrink:build", "args": alternate}
    run = limbeck.distill(**keys(tmp_path), teacher=teacher, student=student, method="distilbert", out=tmp_path / "run")
    assert '"cosine"' in (run.folder / "log.jsonl").read_text()
    language_models(tmp_path)
    run = limbeck.distill(
        task={"use": "text"},
        data=words(),
        teacher=str(tmp_path / "4"),
        student={"model": str(tmp_path / "4"), "layers": 2},
        method="distilbert",
        train={"steps": 2, "batch_size": 6},
        control="none",
        out=tmp_path / "words",
    )
    assert run.result["student"]["metric"] > 0
    survives(lambda: (DistilBERT(), _float(pair(tmp_path))), tmp_path)


def _float(where):
    for actor in (where.student, where.teacher):
        actor.model.float()
    return where
