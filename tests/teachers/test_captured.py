"""What DistillKit captured as a teacher: found by tokens, the model's own distribution, and nothing that was not asked."""

import copy
import pickle
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import limbeck
from limbeck import RecipeError, Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.sketches import Sketch
from limbeck.teachers import captured
from limbeck.teachers.captured import Captured

sys.path.insert(0, str(Path(__file__).parents[1] / "caching"))
from captures import capture

CLASSES = 20
TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [3, 1, 4, 1, 5], [2, 7, 1, 8, 2], [2, 7, 1], [19, 0, 19, 0, 3, 3], [11]]


class Causal(nn.Module):
    """A token depends on all before it."""

    def __init__(self, width=6, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.read, self.head = nn.Embedding(CLASSES, width), nn.Linear(width, CLASSES)
        self.head.weight.data.mul_(5)

    def forward(self, input_ids):
        return self.head(torch.tanh(self.read(input_ids).cumsum(1)))


def columns(rows):
    long = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (long - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (long - len(row)) for row in rows])
    answer = torch.tensor([[True] * (len(row) - 1) + [False] * (long - len(row) + 1) for row in rows])
    target = ids.roll(-1, 1).where(answer, -100)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "target": target,
        "answer": answer,
        "answer_bytes": answer.sum(1),
    }


def batch(rows):
    return columns(rows) | {"id": torch.arange(len(rows))}


def data(train, validation=TEXTS[:3]):
    splits = {"train": TensorSplit(columns(train)), "validation": TensorSplit(columns(validation), first_id=len(train))}
    return Data(splits, dict.fromkeys(columns(train), ""), source="tokens")


@pytest.fixture
def teacher(tmp_path):
    return Teacher(capture(tmp_path / "capture", Causal(), TEXTS))


def check(sketch, rows, k=8, last=0):
    """In each place the model's own k most probable classes and the mass of the others, but in the last ones nothing."""
    for row, text in enumerate(rows):
        exact = Sketch.top(Causal()(torch.tensor([text])).detach()[0], k)
        known = len(text) - 1 - last
        own = sketch[row, :known]
        torch.testing.assert_close(own.expand(), exact[:known].expand(), atol=2e-6, rtol=1e-5)
        assert not sketch[row, known:].known.any()
        assert torch.equal(sketch.log_tail[row, known:], torch.zeros(sketch.shape[1] - known))


def test_the_path_of_a_capture_is_a_teacher_that_says_what_the_model_said(teacher):
    assert isinstance(teacher, Captured)
    rows = [TEXTS[4], TEXTS[0], TEXTS[5], TEXTS[0], TEXTS[2]]
    found = teacher(batch(rows), reads=["logits"])["logits"]
    assert found.shape == (5, 8, CLASSES)
    check(found, rows)
    found.checked()
    assert teacher.probe(batch(rows)) == {"logits": (8, CLASSES)}


def test_the_beginning_of_a_text_is_answered_and_one_more_token_at_its_end(teacher):
    """What is said of a beginning does not depend on what follows; what comes after the end was never asked."""
    begun = [text[:n] for text in TEXTS for n in range(1, len(text) + 1)]
    check(teacher(batch(begun))["logits"], begun)
    longer = [[*text, 17] for text in TEXTS]
    check(teacher(batch(longer))["logits"], longer, last=1)


@pytest.mark.parametrize(
    "row", [[1, 4, 1, 5], [3, 1, 4, 2], [*TEXTS[0], 17, 17], [12], [2, 7, 2], [19, 0, 19, 0, 3, 4, 3]]
)
def test_what_was_not_captured_is_not_answered(teacher, row):
    """The middle of a text, another end, more than one token after it."""
    told = r"the tokens \[.*\] \(\d+ of them\) are no text of .*6 texts of at most 8 tokens.*from the first one on"
    with pytest.raises(RecipeError, match=told):
        teacher(batch([TEXTS[0], row]))


def test_documents_of_a_packed_row_are_texts_of_their_own(teacher):
    packed = batch([[*TEXTS[2], *TEXTS[3], 0]])
    packed["attention_mask"] = torch.tensor([[1] * 8 + [0]])
    packed["segment"] = torch.tensor([[0] * 5 + [1] * 3 + [-1]])
    found = teacher(packed)["logits"]
    for text, start in ((TEXTS[2], 0), (TEXTS[3], 5)):
        check(found[:, start : start + len(text)], [text])


def test_a_teacher_with_tokens_of_its_own(teacher):
    own = batch([[1, 1, 1]]) | {f"teacher_{name}": value for name, value in columns(TEXTS[:2]).items()}
    check(teacher(own)["logits"], TEXTS[:2])
    assert teacher.look_at(own).columns == ("teacher_input_ids", "teacher_attention_mask")


def test_training_with_it_is_training_with_the_model(tmp_path):
    """All classes were captured: the same student to 1e-5, from a recipe that names the folder."""
    folder = capture(tmp_path / "capture", Causal(), TEXTS[:5], k=CLASSES)
    keys = {"data": data(TEXTS[:5]), "task": "text", "method": "forward-kl", "control": "none"}
    keys |= {"train": {"steps": 4, "batch_size": 3, "lr": 0.01}}
    runs = []
    for name, by in (("live", Teacher(Causal(), view="input_ids")), ("captured", str(folder))):
        student = Student(Causal(4, seed=1), view="input_ids")
        runs.append(limbeck.distill(teacher=by, student=student, out=tmp_path / name, **keys))
    live, stored = (load_file(run.folder / "student" / "model.safetensors") for run in runs)
    begun = Causal(4, seed=1).state_dict()
    for name, value in live.items():
        assert not torch.equal(value, begun[name])
        torch.testing.assert_close(stored[name], value, atol=1e-5, rtol=1e-4)
    own, theirs = (run.result["teacher"]["figures"]["nll"] for run in reversed(runs))
    assert own == pytest.approx(theirs, abs=1e-5)
    said = " ".join(runs[1].result["notices"])
    assert "that DistillKit captured; fingerprint" in said
    assert "estimated from the classes that are stored, and every token is one of them" in said


def test_data_that_were_not_captured_are_refused_before_anything_is_trained(teacher, tmp_path):
    with pytest.raises(RecipeError, match=r"^2 of 4 texts of train: the tokens \[4, 4\] \(2 of them\)"):
        teacher.check_data(data([TEXTS[0], [4, 4], TEXTS[2], [5, 5, 5]]))
    teacher.check_data(data(TEXTS[:4], validation=[TEXTS[0], [4, 4]]))
    assert teacher.answers("train")
    assert not teacher.answers("validation")
    assert Teacher(teacher.folder).answers("train")  # built anew to be measured, it is not asked to look again
    student = Student(Causal(4), view="input_ids")
    with pytest.raises(RecipeError, match=r"1 of 1 texts of train"):
        limbeck.distill(data=data([[4, 4]]), task="text", teacher=teacher, student=student, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_changed_are_read_again_and_many_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(captured, "Writer", partial(captured.Writer, budget=64))  # bytes kept in memory
    one = Captured(capture(tmp_path / "one", Causal(), TEXTS))
    assert one.texts.store.folder is not None
    check(one(batch(TEXTS))["logits"], TEXTS)
    other = Captured(capture(tmp_path / "other", Causal(seed=5), TEXTS))
    assert other.fingerprint() != one.fingerprint()
    assert other.texts.store.folder != one.texts.store.folder
    assert not torch.equal(other(batch(TEXTS))["logits"].log_probs, one(batch(TEXTS))["logits"].log_probs)


def test_it_is_a_teacher_that_only_answers(teacher):
    again = pickle.loads(pickle.dumps(teacher))
    check(again(batch(TEXTS))["logits"], TEXTS)
    assert copy.deepcopy(teacher) is teacher
    for wrong in (
        lambda: teacher(batch(TEXTS), until="hint"),
        lambda: teacher(batch(TEXTS), reads=["hidden"]),
        lambda: teacher.tap("hint", "layers.0"),
        lambda: setattr(teacher, "mode", "through"),
    ):
        with pytest.raises(RecipeError, match=r"capture holds "):
            wrong()
    with pytest.raises(RecipeError, match=r"teacher\.taps is for a network, and .* holds its answers only"):
        Teacher(teacher.folder, taps={"hint": "body"})
    assert Teacher(teacher.folder, tokenizer="somewhere").source.tokenizer == "somewhere"
