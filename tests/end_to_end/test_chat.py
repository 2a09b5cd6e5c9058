"""The chat recipe, as a person types it, on two small models of transformers with a tokenizer trained on the spot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import limbeck

SPEC = importlib.util.spec_from_file_location(
    "tiny_chat_models", Path(__file__).parents[2] / "examples" / "tiny_chat_models.py"
)
assert SPEC is not None
assert SPEC.loader is not None
TINY = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TINY)
SHORT = ("train.steps=2", "train.batch_size=4", "train.warmup=0", "control=none", "evaluate=quality")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """`teacher`, `student`, `other` (another tokenizer) and `chat.jsonl`; nobody has learnt anything."""
    folder = tmp_path_factory.mktemp("chat")
    rows = TINY.chats(60, seed=0)
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [message["content"] for row in rows for message in row["messages"]]
    tokens, characters = TINY.tokenizer(texts, 300), TINY.tokenizer(texts, 256 + len(TINY.SPECIAL))
    for name, own, width in (("teacher", tokens, 16), ("student", tokens, 8), ("other", characters, 8)):
        own.save_pretrained(folder / name)
        TINY.model(own, width, 1).save_pretrained(folder / name)
    return folder


@pytest.fixture
def words(models, tmp_path, monkeypatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    return (f"teacher={models}/teacher", f"student={models}/student", f"data={models}/chat.jsonl", *SHORT)


def test_three_words_and_the_student_is_a_chat_model_that_opens_without_us(words, cli):
    code, out, err = cli(
        "distill",
        "chat",
        *words,
        "method.max_new_tokens=6",
        "evaluate=[quality,writing]",
        "export=transformers",
        "--out",
        "run",
    )
    assert code == 0, err
    assert "bits per byte" in out
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in ("run/student", "run/export/transformers"):
        model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        asked = tokens.apply_chat_template(
            [{"role": "user", "content": "Spell cat."}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        assert model.generate(**asked, max_new_tokens=3).shape[1] > asked["input_ids"].shape[1]
    result = json.loads(Path("run/result.json").read_text())
    figures = result["student"]["figures"]
    assert {"bits_per_byte", "perplexity", "judged_nll", "distinct_2"} <= figures.keys()
    assert result["student"]["metric"] == figures["bits_per_byte"]
    page = Path("run/report.html").read_text()
    assert "What they write" in page
    assert "surprise of the teacher" in page


def test_answers_that_are_stored_teach_and_on_policy_says_that_they_cannot(words, cli):
    code, _, err = cli("cache", "chat", *words, "cache.top_k=8", "--out", "answers")
    assert code == 0, err
    stored = ("teacher=answers", *words[1:])
    code, _, err = cli("distill", "chat", *stored, "--out", "no")
    assert code == 2
    assert "Use method=forward-kl with it, or the teacher itself" in err
    code, _, err = cli("distill", "chat", *stored, "method=forward-kl", "--out", "run")
    assert code == 0, err


def test_stored_answers_about_all_tokens_teach_what_the_teacher_teaches(words, cli):
    for name, more in (("live", ()), ("stored", ("teacher=answers",))):
        if name == "stored":
            assert cli("cache", "chat", *words, "cache.top_k=303", "cache.dtype=fp32", "--out", "answers")[0] == 0
        code, _, err = cli("distill", "chat", *words, *more, "method=forward-kl", "--out", name)
        assert code == 0, err
    live, stored = (limbeck.Run(name).result["student"]["metric"] for name in ("live", "stored"))
    assert stored == pytest.approx(live, rel=1e-3)
    code, _, err = cli("distill", "chat", *words, "teacher=answers", "evaluate=[quality,speculative]", "--out", "no")
    assert code == 2
    assert "this teacher is no network here (stored answers in answers of" in " ".join(err.split())
    assert not Path("no").exists()


def test_another_tokenizer_is_refused_with_the_methods_that_cross_and_these_run(words, models, cli):
    other = (words[0], f"student={models}/other", *words[2:])
    code, _, err = cli("distill", "chat", *other, "--out", "no")
    assert code == 2
    assert "split text differently" in err
    assert "uld" in err
    code, _, err = cli("distill", "chat", *other, "method=uld", "evaluate=[quality,speculative]", "--out", "no")
    assert code == 2
    assert "Leave speculative out of evaluate" in " ".join(err.split())
    code, _, err = cli("distill", "chat", *other, "method=uld", "--out", "run")
    assert code == 0, err


def test_adapters_learn_and_are_gone_when_the_student_ships(words, models, cli):
    code, _, err = cli(
        "distill", "chat", *words, "method=forward-kl", "student.lora.rank=2", "train.lr=0.1", "--out", "run"
    )
    assert code == 0, err
    from safetensors.torch import load_file

    before, after = (load_file(place / "model.safetensors") for place in (models / "student", Path("run/student")))
    assert not any("lora" in name for name in after)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("proj" in name for name in changed)


def test_packed_rows_teach_what_single_rows_teach(words, cli):
    for pack in ("false", "true"):
        more = (
            "method=forward-kl",
            f"data.pack={pack}",
            "data.length=160",
            "train.batch_size=64",
            "train.steps=1",
            "seed=0",
        )
        code, _, err = cli("distill", "chat", *words, *more, "--out", f"pack-{pack}")
        assert code == 0, err
    alone, packed = (limbeck.Run(f"pack-{pack}").result for pack in ("false", "true"))
    assert packed["student"]["metric"] == pytest.approx(alone["student"]["metric"], rel=1e-4)
    assert packed["samples"] < alone["samples"]


def test_a_wrong_file_is_refused_in_a_sentence(words, tmp_path, cli):
    (tmp_path / "empty.jsonl").write_text('{"messages": [{"role": "user", "content": "Hello"}]}\n' * 3)
    code, _, err = cli("distill", "chat", *words[:2], f"data={tmp_path}/empty.jsonl", *SHORT, "--out", "no")
    assert code == 2, err
    assert not (tmp_path / "no").exists()
