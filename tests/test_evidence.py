"""docs/evidence.md says what the committed figures say, and the figures what the runs said."""

import copy
import importlib.util
import json
import re
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tables, cross_modal, comparison_tables = load("tables"), load("cross_modal"), load("comparison_tables")
FILES = sorted((ROOT / "benchmarks" / "evidence").glob("cross-modal-*.json"))
ENCODERS = sorted((ROOT / "benchmarks" / "evidence").glob("encoders-*.json"))
ACROSS = sorted((ROOT / "benchmarks" / "evidence").glob("methods-across-modalities-*.json"))


def test_the_page_is_what_the_command_makes_of_the_committed_files():
    assert (ROOT / "docs" / "evidence.md").read_text() == tables.build(), "run: python benchmarks/tables.py"


def test_the_list_of_methods_and_the_cards_are_what_the_command_makes():
    assert (ROOT / "docs" / "methods.md").read_text() == tables.methods_page(), "run: python benchmarks/tables.py"
    assert (ROOT / "src/limbeck/methods/evidence.json").read_text() == tables.cards(), (
        "run: python benchmarks/tables.py"
    )


def test_no_page_tells_a_path_of_the_machine_it_was_made_on():
    for file in [*(ROOT / "benchmarks").glob("*/*.json"), *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"/(work|tmp|home|root)/", file.read_text()), file


def test_there_is_evidence():
    assert FILES
    assert len(ACROSS) == 5


@pytest.mark.parametrize("file", ACROSS, ids=lambda file: file.stem)
def test_every_arm_across_modalities_had_the_same_trials_and_seeds_and_failures_are_told(file):
    stored = json.loads(file.read_text())
    assert stored["seeds"] == [0, 1, 2, 3, 4]
    for problem in stored["targets"].values():
        methods = {arm["method"] for arm in problem["arms"]}
        assert methods == {"supervised", "kd", "fitnets", "rkd", "crd", "mlkd", "ofa", "c2kd", "mgdfr", "mst-distill"}
        for arm in problem["arms"]:
            assert arm["cost"]["trials"] == stored["trials"]
            assert arm["planned"] == 5
            assert arm["finished"] + len(arm["failed"]) == 5
            assert arm["mean"] is None or arm["mean"] == pytest.approx(statistics.fmean(arm["values"].values()))


@pytest.mark.parametrize("file", ENCODERS, ids=lambda file: file.stem)
def test_encoders_had_the_same_steps_and_seeds_and_what_is_inherited_follows_from_them(file):
    stored, encoders = json.loads(file.read_text()), load("encoders")
    assert json.loads(json.dumps(encoders.inherited(stored["targets"]))) == stored["inherited"]
    assert stored["train"] == encoders.TRAIN | {"steps": encoders.STEPS}
    assert len(stored["seeds"]) >= 3
    for name, problem in stored["targets"].items():
        assert [arm["method"] for arm in problem["arms"]] == encoders.ARMS[name.partition(", ")[2]]
        for arm in problem["arms"]:
            assert arm["cost"]["steps"] == encoders.STEPS
            assert arm["finished"] == arm["planned"] == len(stored["seeds"])
            assert arm["mean"] == pytest.approx(statistics.fmean(arm["values"].values()))
            assert arm["teacher"] == pytest.approx(
                stored["teacher"], abs=0.005
            )  # batches of other sizes round otherwise
    layers = [row["layers"] for row in stored["sizes"]]
    assert layers == [4, *encoders.SETS[stored["dataset"]][2].values()]


def test_the_section_on_encoders_says_what_its_file_says():
    def arm(name, values, **than):
        told = {base: {"seeds": {"mean": m, "low": m - 0.01, "high": m + 0.01}} for base, m in than.items()}
        return {"arm": name, "method": name, "mean": statistics.fmean(values), "sd": 0.0, "differences": told} | {
            "values": dict(zip("012", values)),
            "finished": 3,
            "planned": 3,
        }

    new, own = "half the layers, new weights", "half the layers, the teacher's layers"
    targets = {
        new: {"metric": "accuracy", "arms": [arm("supervised", [0.4] * 3), arm("kd", [0.5] * 3, supervised=0.1)]},
        own: {
            "metric": "accuracy",
            "arms": [arm("supervised", [0.6, 0.61, 0.62]), arm("kd", [0.3, 0.5, 0.76], supervised=0)],
        },
    }
    encoders, encoder_tables = load("encoders"), load("encoder_tables")
    found = {
        "dataset": "toy",
        "notes": "texts",
        "teacher": 0.8,
        "teacher_steps": 5,
        "train": {"steps": 3, "batch_size": 2},
        "seeds": [0, 1, 2],
        "command": "again",
        "targets": targets,
        "targets_are": "the student has",
        "inherited": encoders.inherited(targets),
        "sizes": [{"layers": 4, "parameters": 1000, "bytes": 4e6, "ms_for_32_texts": 8.0, "faster": 1.0}],
    }
    page = encoder_tables.section(found)
    assert "| kd | 0.500 ± 0.000 | 0.625 | +0.100 (+0.090 to +0.110) |  |" in page
    assert "| 4 | 1,000 | 4.00 MB | 8.0 | 1.00x |" in page
    assert "better: supervised with half the layers +0.210 (+0.185 to +0.235)" in page
    assert "not told apart: kd with half the layers +0.020" in page
    (where, _), _ = comparison_tables.problems(found)
    assert where == "toy, the student has half the layers, new weights"


def test_the_words_of_a_comparison_follow_from_its_intervals():
    def arm(name, method, mean, **against):
        told = {base: {"seeds": {"mean": m, "low": m - 0.01, "high": m + 0.01}} for base, m in against.items()}
        return {
            "arm": name,
            "method": method,
            "mean": mean,
            "sd": 0.01,
            "differences": told,
            "failed": [],
            "planned": 5,
        } | {"finished": 5, "cost": {"seconds": 1.0}}

    arms = [arm("supervised", "supervised", 0.5), arm("kd", "kd", 0.55, supervised=0.05)]
    arms += [arm("sp", "sp", 0.5, supervised=0.001, kd=-0.05)]
    arms += [arm("x", "x", None) | {"failed": [{"run": "x-0", "reason": "no such layer."}], "finished": 0}]
    problem = {"metric": "accuracy", "arms": arms}
    said = " ".join(comparison_tables.sentences(problem))
    assert "Against supervised, better: kd; not told apart: sp." in said
    assert "Against kd, worse: sp." in said
    rows = comparison_tables.table(problem)
    assert rows[2].startswith("| kd | 0.550 ± 0.010 | +0.050 (+0.040 to +0.060) |")
    assert rows[-1].startswith("| x | failed: no such layer. |")
    found = comparison_tables.by_method([{"dataset": "toy", **problem}])
    assert found["sp"][1] == {
        "data": "toy",
        "arm": "sp",
        "than": "kd",
        "seeds": 5,
        "mean": -0.05,
        "low": -0.06,
        "high": -0.04,
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_figure_follows_from_the_seeds_and_every_arm_had_the_same_budget(file):
    stored = json.loads(file.read_text())
    assert stored["settings"] == json.loads(json.dumps(cross_modal.settings(stored["dataset"]))), (
        "made with other settings"
    )
    for target, summary in stored["summary"].items():
        fresh = json.loads(json.dumps(cross_modal.summary(target, stored["seeds"])))
        assert fresh == summary
        for one in stored["seeds"]:
            arms = one["targets"][target]
            assert {(arm["student_epochs"], arm["student_steps"]) for arm in arms.values()} == {
                (arms["supervised"]["student_epochs"], arms["supervised"]["student_steps"])
            }


def seeds(supervised, mst, kd=0.5):
    """Made-up seeds of av-digits whose arms have these test accuracies."""

    def entry(value):
        return {"test": value, "validation": value, "student_epochs": 15, "student_steps": 9, "seconds": 1.0}

    arms = {
        "supervised": supervised,
        "kd-multimodal": [kd] * 3,
        "kd-other": [0.4] * 3,
        "uniform": mst,
        "mst-distill": mst,
    }
    return [
        {
            "seed": seed,
            "versions": {"limbeck": "0", "torch": "0"},
            "teachers": {name: entry(0.9) for name in ("both", "audio", "image")},
            "targets": {t: {arm: entry(values[seed]) for arm, values in arms.items()} for t in ("image", "audio")},
        }
        for seed in range(3)
    ]


def test_better_worse_and_neither_are_told_by_the_interval(tmp_path):
    made = seeds([0.6, 0.61, 0.62], [0.7, 0.71, 0.73])
    summary = cross_modal.summary("image", made)
    text = tables.verdicts("image", summary, cross_modal.ARMS)
    assert "better: uniform mixture of the specialised teachers; MST-Distill. Worse: KD from the" in text
    assert "MST-Distill is better than the best KD (from the multimodal teacher): +0.213" in text
    assert "MST-Distill is not told apart from the uniform mixture: +0.000" in text
    unsure = cross_modal.summary("image", seeds([0.6, 0.7, 0.8], [0.8, 0.7, 0.65]))
    assert "Not told apart" not in text
    told = tables.verdicts("image", unsure, cross_modal.ARMS)
    assert (
        "Not told apart: KD from the multimodal teacher; uniform mixture of the specialised teachers; MST-Distill."
        in told
    )


def test_the_best_kd_is_chosen_on_validation():
    made = seeds([0.6] * 3, [0.7] * 3)
    for one in made:
        one["targets"]["image"]["kd-other"]["validation"] = 0.99  # though worse on test
    assert cross_modal.summary("image", made)["best_kd_on_validation"] == "kd-other"


def test_new_seeds_join_the_file_and_other_settings_do_not(tmp_path):
    made, file = seeds([0.6, 0.7, 0.8], [0.7] * 3), tmp_path / "one.json"
    file.write_text(json.dumps(cross_modal.join(file, "av-digits", made[:2], "command")))
    joined = cross_modal.join(file, "av-digits", [copy.deepcopy(made[2])], "command")
    assert [one["seed"] for one in joined["seeds"]] == [0, 1, 2]
    assert joined["summary"]["image"]["arms"]["supervised"]["mean"] == pytest.approx(statistics.fmean([0.6, 0.7, 0.8]))
    stored = json.loads(file.read_text())
    stored["settings"]["train"]["student"]["lr"] = 1.0
    file.write_text(json.dumps(stored))
    with pytest.raises(SystemExit, match="other settings"):
        cross_modal.join(file, "av-digits", made[2:], "command")


def test_sections_without_files_are_left_out(tmp_path):
    assert "What the engine costs" not in tables.build(tmp_path, tmp_path)
    case = {"ms_by_hand": 1.0, "ms_limbeck": 1.1, "ratio": 1.1, "ratio_quartiles": [1.05, 1.2]}
    case |= {
        "ratio_against_default_adamw": 0.95,
        "peak_mb_by_hand": 100.0,
        "peak_mb_limbeck": 101.0,
        "peak_ratio": 1.01,
    }
    found = {
        "machine": "m",
        "threads": 1,
        "torch": "2",
        "device": "cpu",
        "cnn": case,
        "mlp": case | {"ratio_quartiles": [0.9, 1.1]},
    }
    (tmp_path / "overhead.json").write_text(json.dumps(found))
    page = tables.build(tmp_path, tmp_path)
    assert "| cnn | 1.00 | 1.10 | 1.100 (1.050 to 1.200) | 0.950 |" in page
    assert "Slower than by hand (both quartiles above 1): cnn. Not told apart: mlp." in page
