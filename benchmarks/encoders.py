"""Encoders that classify texts: one teacher of four layers, students of two and of one; new weights or the teacher's layers.

    python -m benchmarks.encoders --packs FOLDER [--sets banking77 trec6] [--seeds 0 1 2] [--work FOLDER]

FOLDER holds banking77 and sentence_classification. Nothing is pretrained: the teacher, a ModernBERT of width 48 with WordPieces of
its own training texts, learns from the labels alone. Every student of a depth has the same batches, steps and learning rate, and
its method's defaults: nothing is tuned. The figures go to benchmarks/evidence/encoders-SET.json; `python benchmarks/tables.py`
makes the page.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.command_line import some_of, words

import limbeck
from limbeck.evaluation import intervals, speed

SETS = {
    "banking77": ("banking77/{part}.jsonl.gz", "what customers of a bank ask, 77 intents", {"half": 2}),
    "trec6": (
        "sentence_classification/trec6.{part}.jsonl.gz",
        "what a question asks for, 6 kinds",
        {"half": 2, "quarter": 1},
    ),
}
DEPTHS = {"half": "half the layers", "quarter": "a quarter of the layers"}
LAYERS, WORDS, LONGEST = 4, 2000, 20
SIZES = {"hidden_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 96}
ARMS: dict[str, list[Any]] = {
    "new weights": ["supervised", "kd", "distilbert", "tinybert", "minilm"],
    "the teacher's layers": ["supervised", "kd", "minilm"],
}
TRAIN = {"batch_size": 64, "lr": 3e-3, "warmup": 0.1}
TEACHER_STEPS, STEPS = 500, 100


def rows(packs: Path, name: str, part: str) -> list[dict[str, str]]:
    file = packs / SETS[name][0].format(part=part)
    with gzip.open(file, "rt") as lines:
        return [{key: str(value).strip() for key, value in json.loads(line).items()} for line in lines]


def prepare(packs: Path, name: str, folder: Path) -> Path:
    """A manifest (every tenth training row validates), and a folder with a configuration and a tokenizer of these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = rows(packs, name, "train"), rows(packs, name, "test")
    known = {(row["text"], row["label"]) for row in test}
    train = [row for row in train if (row["text"], row["label"]) not in known]  # some questions stand on both sides
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        writer.writerows([r["text"], r["label"], "train" if i % 10 else "validation"] for i, r in enumerate(train))
        writer.writerows([r["text"], r["label"], "test"] for r in test)
    vocabulary(folder / "start", (row["text"] for row in train), len({row["label"] for row in train}))
    return folder / "texts.csv"


def vocabulary(folder: Path, texts: Iterator[str], classes: int) -> None:
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=WORDS, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LONGEST, **names).save_pretrained(
        folder
    )
    ends = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = transformers.ModernBertConfig(
        vocab_size=made.get_vocab_size(),
        max_position_embeddings=LONGEST,
        num_labels=classes,
        classifier_pooling="mean",  # without pretraining, a classifier that reads one token learns slowly
        global_attn_every_n_layers=1,
        initializer_range=0.1,
        **ends,
        **SIZES,
    )
    config.architectures = ["ModernBertForSequenceClassification"]
    config.save_pretrained(folder)


def new(folder: Path, layers: int) -> dict[str, Any]:
    args = {"config": str(folder / "start"), "num_hidden_layers": layers}
    return {"model": "limbeck.models.adapters.of_transformers:build", "args": args}


def measure(name: str, given: argparse.Namespace) -> None:
    """Train the teacher, compare the students of every depth, and write the file; the same call goes on after a stop."""
    folder = (given.work / name).resolve()
    path = prepare(given.packs, name, folder)
    keys: dict[str, Any] = {
        "task": "classification",
        "data": {"path": str(path), "columns": {"text": "text", "label": "label"}},
        "control": "none",
    }
    teacher = limbeck.distill(
        **keys,
        student=new(folder, LAYERS),
        method="supervised",
        train=TRAIN | {"steps": TEACHER_STEPS},
        seed=0,
        out=folder / "teacher",
    )
    own = {"teacher": str(teacher.folder), "train": TRAIN | {"steps": STEPS}}
    targets: dict[str, Any] = {}
    for depth, layers in SETS[name][2].items():
        starts = {
            "new weights": new(folder, layers),
            "the teacher's layers": {"model": str(teacher.folder), "layers": layers},
        }
        for start, student in starts.items():
            found = limbeck.compare(
                limbeck.Recipe(keys | own | {"student": student}, name=f"{name}-{depth}"),
                vary={"seed": given.seeds, "method": ARMS[start]},
                out=folder / f"{depth}-{start.replace(' ', '-').replace(chr(39), '')}",
            )
            (problem,) = json.loads((found.folder / "comparison.json").read_text())["problems"]
            targets[f"{DEPTHS[depth]}, {start}"] = {k: problem[k] for k in ("metric", "split", "samples", "arms")}
    facts = {
        "dataset": name,
        "notes": SETS[name][1],
        "command": f"python -m benchmarks.encoders --packs FOLDER --sets {name}",
        "targets_are": "the student has",
        "train": TRAIN | {"steps": STEPS},
        "teacher_steps": TEACHER_STEPS,
        "seeds": given.seeds,
        "teacher": teacher.result["student"]["metric"],
        "sizes": sizes(folder, SETS[name][2]),
        "inherited": inherited(targets),
        "targets": targets,
    }
    file = given.out / f"encoders-{name}.json"
    file.write_text(json.dumps(facts, indent=1) + "\n")
    print(file)


def inherited(targets: dict[str, Any]) -> list[dict[str, Any]]:
    """What the teacher's layers are worth to each method: with them, minus with new weights, paired by seed."""
    told = []
    for name, problem in targets.items():
        depth = name.partition(", ")[0]
        before = {arm["arm"]: arm["values"] for arm in targets[f"{depth}, new weights"]["arms"]}
        for arm in problem["arms"] if name.endswith("the teacher's layers") else []:
            pairs = [
                value - before[arm["arm"]][seed] for seed, value in arm["values"].items() if seed in before[arm["arm"]]
            ]
            found = intervals.paired_t(pairs)
            told.append({"depth": depth, "arm": arm["arm"], "mean": found.mean, "low": found.low, "high": found.high})
    return told


def sizes(folder: Path, depths: dict[str, int]) -> list[dict[str, Any]]:
    """Parameters, bytes and the time for 32 texts, of the teacher and of each depth, asked in turn."""
    whole = limbeck.Teacher(str(folder / "teacher"))
    actors = {LAYERS: whole} | {n: limbeck.Student(str(folder / "teacher"), layers=n) for n in depths.values()}
    with (folder / "texts.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["split"] == "test"][:32]
    times: dict[int, list[float]] = {n: [] for n in actors}
    for actor in actors.values():
        actor.look_at(["text", "label"])
        actor.model.eval()
    for _ in range(15):
        for n, actor in actors.items():
            _, shown = actor.shown({"text": texts})
            times[n].append(
                speed.latency(lambda model=actor.model, shown=shown: model(**shown), repeats=3, warmup=1).median
            )
    return [
        {
            "layers": n,
            "parameters": actor.parameters_count(),
            "bytes": actor.bytes_count(),
            "ms_for_32_texts": round(statistics.median(times[n]), 2),
            "faster": round(statistics.median(a / b for a, b in zip(times[LAYERS], times[n])), 2),
        }
        for n, actor in actors.items()
    ]


if __name__ == "__main__":
    asked = words(__doc__, "limbeck-encoders", sets=some_of(SETS))
    for one in asked.sets:
        measure(one, asked)
