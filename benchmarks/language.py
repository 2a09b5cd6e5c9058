"""Small language models on real texts: one teacher of 10 M parameters, students of 0.9 M, once with every method; three seeds.

    python -m benchmarks.language --packs FOLDER [--sets tinyshakespeare text_domains] [--seeds 0 1 2] [--work FOLDER]

FOLDER holds tinyshakespeare and text_domains (docs of benchmarks/packs.py). The tokenizer is byte-level BPE of 2,048 tokens,
trained on the training texts. Every student of a seed goes on from the same student, which has read the texts for 300 steps;
texts, steps and learning rate are the same for all, and "supervised" reads on without a teacher. Methods run with their
published defaults but for what `ARMS` says. Beside bits per byte of the test texts, 64 prompts of the test split are continued
by every student: the teacher's log-probability of what it writes, and how many of its pairs and triples of tokens are
different. The figures go to benchmarks/evidence/language-SET.json; `python benchmarks/tables.py` makes the page.
"""

from __future__ import annotations

import gzip
import json
import random
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks.command_line import some_of, words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import limbeck

LENGTH = 128
TEACHER = {"hidden_size": 320, "num_hidden_layers": 7, "num_attention_heads": 8}
STUDENT = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
BATCH = 16
TRAIN: dict[str, Any] = {"batch_size": BATCH, "lr": 5e-4, "warmup": 0.05, "precision": "bf16", "validate_every": 1000}
WRITTEN = ("judged_nll", "distinct_2", "distinct_3", "written_tokens")
SETS: dict[str, dict[str, Any]] = {
    "tinyshakespeare": {"teacher": {"epochs": 4}, "start": {"steps": 300}, "steps": 80, "held_out": 16},
    "text_domains": {"teacher": {"steps": 500}, "start": {"steps": 300}, "steps": 80, "held_out": 120},
}
ROLLOUTS = {"max_new_tokens": 64}
ARMS: dict[str, Any] = {
    "supervised": "supervised",
    "seq-kd": {"use": "seq-kd", "max_new_tokens": 32},
    "forward-kl": "forward-kl",
    "reverse-kl": "reverse-kl",
    "js": {"use": "token-kd", "divergence": "js"},
    "on-policy": {"use": "on-policy", "divergence": "js", "student_share": 0.5, **ROLLOUTS},
    "distillm": {"use": "distillm", **ROLLOUTS},
    "taid": "taid",
    "sinkd": "sinkd",
}


def shakespeare(packs: Path) -> dict[str, list[str]]:
    """The plays in their order: 80 % train, then 10 % each; a document is a run of speeches of 4,000 characters or more."""
    with gzip.open(packs / "tinyshakespeare" / "input.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read()
    documents, held = [], ""
    for speech in text.split("\n\n"):
        held += speech + "\n\n"
        if len(held) > 4000:
            documents.append(held)
            held = ""
    first, second = int(0.8 * len(documents)), int(0.9 * len(documents))
    return {"train": documents[:first], "validation": documents[first:second], "test": documents[second:]}


def domains(packs: Path) -> dict[str, list[str]]:
    """Six domains, drawn together; a tenth of the training documents validates. Code is left out (a benchmark)."""
    found: dict[str, list[str]] = {"train": [], "test": []}
    for name in ("prose", "dialogue", "math", "biomedical", "news"):
        for split, documents in found.items():
            with gzip.open(packs / "text_domains" / f"{name}.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
                documents += [json.loads(line)["text"] for line in file]
    draw = random.Random(0)
    for documents in found.values():
        draw.shuffle(documents)
    tenth = len(found["train"]) // 10
    return {"train": found["train"][tenth:], "validation": found["train"][:tenth], "test": found["test"]}


READERS = {"tinyshakespeare": shakespeare, "text_domains": domains}


def tokenizer(texts: Iterable[str], size: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def new(folder: Path, tokens: PreTrainedTokenizerFast, sizes: dict[str, int], seed: int) -> str:
    """A Llama with new weights, in its folder with the tokenizer."""
    if not (folder / "config.json").exists():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokens),
            intermediate_size=3 * sizes["hidden_size"],
            num_key_value_heads=sizes["num_attention_heads"],
            max_position_embeddings=2 * LENGTH,
            tie_word_embeddings=True,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            bos_token_id=None,
            **sizes,
        )
        tokens.save_pretrained(folder)
        LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def prepare(name: str, packs: Path, work: Path) -> tuple[dict[str, str], PreTrainedTokenizerFast]:
    """The splits as files, and the tokenizer."""
    texts = READERS[name](packs)
    work.mkdir(parents=True, exist_ok=True)
    files = {}
    most = SETS[name]["held_out"]
    for split, documents in texts.items():
        documents = documents if split == "train" else documents[:most]
        files[split] = str(work / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return files, tokenizer(texts["train"])


def begin(name: str, seed: int, files: dict[str, str], tokens: PreTrainedTokenizerFast, work: Path) -> str:
    """A student that has read the texts for a while, from which every arm of its seed goes on."""
    run = limbeck.distill(
        task="text",
        data={"path": files, "length": LENGTH},
        student=new(work / f"student-start-{seed}", tokens, STUDENT, seed),
        method="supervised",
        train=TRAIN | {"lr": 2e-3} | SETS[name]["start"],
        control="none",
        seed=seed,
        out=work / f"student-{seed}",
    )
    return str(run.folder / "student")


def teach(name: str, files: dict[str, str], tokens: PreTrainedTokenizerFast, work: Path) -> limbeck.Run:
    """The teacher, trained on the texts."""
    return limbeck.distill(
        task="text",
        data={"path": files, "length": LENGTH},
        student=new(work / "teacher-start", tokens, TEACHER, 0),
        method="supervised",
        train={"batch_size": BATCH, "lr": 1e-3, "warmup": 0.05, "precision": "bf16"} | SETS[name]["teacher"],
        control="none",
        out=work / "teacher",
    )


def compare(name: str, files: dict[str, str], tokens: PreTrainedTokenizerFast, teacher: Path, given: Any) -> Any:
    """All arms of one set of texts on all seeds; what is finished is not repeated."""
    work = given.work / name
    students = [[seed, begin(name, seed, files, tokens, work)] for seed in given.seeds]
    keys = {
        "task": "text",
        "data": {"path": files, "length": LENGTH},
        "teacher": str(teacher / "student"),
        "train": TRAIN | {"steps": SETS[name]["steps"]},
        "evaluate": ["quality", "writing"],
        "control": "none",
    }
    return limbeck.compare(
        limbeck.Recipe(keys | {"student": students[0][1]}, name=name),
        vary={"seed,student": students, "method": [ARMS[arm] for arm in given.arms]},
        out=work / "comparison",
    )


def wrote(comparison: Path) -> dict[str, dict[str, float]]:
    """Means over seeds of what the students of every arm wrote, and of the teacher, by the arm's name."""
    entries = {
        entry["name"]: entry["arm"] for entry in json.loads((comparison / "comparison.json").read_text())["runs"]
    }
    found: dict[str, list[dict[str, float]]] = {}
    for name, arm in entries.items():
        file = comparison / name / "result.json"
        if file.exists():
            result = json.loads(file.read_text())
            for role, who in (("student", arm), ("teacher", "the teacher")):
                figures = result[role]["figures"]
                found.setdefault(who, []).append({key: figures[key] for key in WRITTEN if key in figures})
    return {
        who: {key: statistics.fmean(row[key] for row in rows) for key in WRITTEN if all(key in row for row in rows)}
        for who, rows in found.items()
    }


def main() -> None:
    """Everything, or what is left of it."""
    given = words(
        __doc__, "limbeck-language", sets=some_of(SETS), arms=some_of(ARMS), teachers_only={"action": "store_true"}
    )
    for name in given.sets:
        files, tokens = prepare(name, given.packs, given.work / name)
        started = time.monotonic()
        teacher = teach(name, files, tokens, given.work / name)
        print(name, teacher.result["student"]["figures"], f"{time.monotonic() - started:.0f} s", flush=True)
        if given.teachers_only:
            continue
        found = compare(name, files, tokens, teacher.folder, given)
        (problem,) = json.loads((found.folder / "comparison.json").read_text())["problems"]
        told = {
            "dataset": name,
            "notes": (
                f"Rows of {LENGTH} tokens; a Llama of {TEACHER['num_hidden_layers']} layers and width {TEACHER['hidden_size']} "
                f"(10 M parameters) teaches one of {STUDENT['num_hidden_layers']} layers and width {STUDENT['hidden_size']} (0.9 M)"
            ),
            "command": f"python -m benchmarks.language --packs FOLDER --sets {name}",
            "train": TRAIN | {"steps": SETS[name]["steps"]},
            "teacher_train": SETS[name]["teacher"],
            "start": SETS[name]["start"],
            "seeds": given.seeds,
            "teacher": problem["arms"][0]["teacher"],
            "arms_given": {arm: ARMS[arm] for arm in given.arms},
            "wrote": wrote(found.folder),
        }
        file = given.out / f"language-{name}.json"
        shown = {key: problem[key] for key in ("metric", "higher_is_better", "split", "samples")}
        shown["arms"] = [arm for arm in problem["arms"] if arm["finished"] == arm["planned"]]  # others are still to run
        file.write_text(json.dumps(told | shown, indent=1) + "\n")
        print(file, flush=True)


if __name__ == "__main__":
    main()
