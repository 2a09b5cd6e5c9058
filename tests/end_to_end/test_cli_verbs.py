"""The verbs as a stranger types them, and what they leave behind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from limbeck import Recipe, RecipeError, Run, Student, Teacher, distill
from limbeck.methods.kd import KD

ENTRY = {"name", "view", "metric", "parameters", "bytes", "latency_ms", "figures"}
FIELDS = {
    *("limbeck", "status", "name", "command", "split", "samples", "seed", "task", "method", "student", "teacher"),
    *("control", "retention", "gap_closed", "difference", "require", "cost", "stages", "notices"),
}


def weights(run: str | Path) -> bytes:
    return (Path(run) / "student/model.safetensors").read_bytes()


def test_distill_with_overrides_writes_them_down(project, cli):
    words = ("train.epochs=1", "method.temperature=3", "student.args.width=5", "seed=9")
    code, out, err = cli("distill", "kd.yaml", *words, "--out", "run")
    assert code == 0
    recipe = Run("run").recipe
    assert (recipe.train.epochs, recipe.method["temperature"], recipe.student.args["width"], recipe.seed) == (
        1,
        3,
        5,
        9,
    )
    assert "student, Net" in out
    assert "teacher: tiny_models:Net" in err
    assert "run/report.html" in out
    assert (project / "run/report.html").stat().st_size > 10_000


def test_result_json_says_everything(project, cli):
    cli("distill", "kd.yaml", "control=train", "require=['samples >= 40']", "--out", "run")
    result = json.loads((project / "run/result.json").read_text())
    assert result.keys() == FIELDS
    assert all(result[who].keys() == ENTRY for who in ("student", "teacher", "control"))
    assert (result["status"], result["split"], result["samples"], result["seed"]) == ("finished", "test", 40, 3)
    assert result["task"] == {
        "name": "classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "labels": ["red", "green", "blue"],
    }
    assert result["retention"] == pytest.approx(result["student"]["metric"] / result["teacher"]["metric"])
    assert result["difference"]["mean"] == pytest.approx(result["student"]["metric"] - result["control"]["metric"])
    assert result["require"] == [{"text": "samples >= 40", "value": 40, "held": True}]
    assert result["cost"]["steps"] == result["stages"][0]["steps"] == 18
    answers = load_file(project / "run/predictions.safetensors")
    hits = (answers["student.logits"].argmax(1) == answers["target"]).double().mean()
    assert result["student"]["metric"] == pytest.approx(float(hits))


def test_the_teacher_that_nobody_trained_is_told(project, cli):
    _, _, shown = cli("distill", "kd.yaml", "train.steps=1", "--out", "run")
    assert "its weights are as tiny_models:Net constructs them, and no stage trains it" in shown
    _, _, shown = cli("distill", "kd.yaml", "teacher=run", "train.steps=1", "--out", "next")
    assert "no stage trains it" not in shown
    _, _, shown = cli("distill", "mst.yaml", "train.steps=1", "control=none", "--out", "mst")
    assert "no stage trains it" not in shown  # its first stage does


def test_only_the_student_ships(project, cli):
    cli("distill", "mst.yaml", "train.epochs=1", "--out", "run")
    import tiny_models

    own, shipped = tiny_models.Net(inputs=4).state_dict(), load_file(project / "run/student/model.safetensors")
    assert shipped.keys() == own.keys()
    assert all(shipped[name].shape == own[name].shape for name in own)
    header = 1024 + 128 * len(own)
    assert len(weights("run")) < sum(t.numel() * t.element_size() for t in own.values()) + header
    assert {p.name for p in (project / "run/student").iterdir()} == {
        "model.safetensors",
        "limbeck.json",
        "labels.json",
        "README.md",
    }
    answers = load_file(project / "run/predictions.safetensors")
    test = Run("run").recipe.build_data()["test"]
    for loaded in (Student("run"), Run("run").student, Student("run/student")):
        loaded.model.eval()
        torch.testing.assert_close(loaded(test.__getitems__(list(range(40))))["logits"], answers["student.logits"])


def test_what_is_shipped_loads_in_a_bare_torch(project, cli):
    cli("distill", "kd.yaml", "--out", "run")
    facts = json.loads((project / "run/student/limbeck.json").read_text())
    import tiny_models

    model = tiny_models.Net(**facts["args"])
    model.load_state_dict(load_file(project / "run/student/model.safetensors"))
    assert json.loads((project / "run/student/labels.json").read_text()) == ["red", "green", "blue"]


def test_json_alone_stands_on_standard_output(project, cli):
    code, out, err = cli("distill", "kd.yaml", "--out", "run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == Run("run").result
    for words in (
        ["distill", "kd.yaml", "--out", "run"],
        ["resume", "run"],
        ["evaluate", "run"],
        ["inspect"],
        ["inspect", "run"],
        ["inspect", "kd.yaml"],
        ["inspect", "tiny_data:paired"],
        ["inspect", "run/student"],
        ["methods"],
        ["methods", "mst-distill"],
        ["export", "run"],
    ):
        code, out, _ = cli(*words, "--json")
        assert code == 0, words
        assert json.loads(out), words


def test_quiet_shows_the_result_and_nothing_of_the_way(project, cli):
    code, out, err = cli("distill", "kd.yaml", "--out", "run", "--quiet")
    assert (code, err) == (0, "")
    assert "accuracy" in out
    for words in (["evaluate", "run"], ["inspect", "run"], ["methods"], ["export", "run"]):
        assert cli(*words, "--quiet")[0] == 0


def test_evaluate_measures_again(project, cli):
    cli("distill", "kd.yaml", "--out", "run")
    result = Run("run").result
    code, out, _ = cli("evaluate", "run", "fidelity", "--json")
    again = json.loads(out)
    assert code == 0
    assert again["figures"] == pytest.approx(result["student"]["figures"])
    assert (again["split"], again["samples"]) == ("test", 40)
    teacher = json.loads(cli("evaluate", "run", "missing", "--of", "teacher", "--json")[1])
    assert teacher["metric"] == result["teacher"]["metric"]
    assert {"without_x", "without_a"} <= teacher["figures"].keys()
    assert json.loads(cli("evaluate", "run", "--split", "train", "--json")[1])["samples"] == 96
    (project / "more.py").write_text(
        "from tiny_data import paired\n\n\ndef other():\n    return paired(rows=24, seed=5)\n"
    )
    assert json.loads(cli("evaluate", "run", "--data", "more:other", "--split", "train", "--json")[1])["samples"] == 24
    for words, told in (
        (["--split", "tset"], "no split 'tset'"),
        (["--of", "control"], "measure the 'student' or the 'teacher'"),
        (["callibration"], "Did you mean 'calibration'?"),
        (["judge"], "not there yet"),
        (["fid"], "looks at generated pictures, and the task is classification"),
    ):
        code, _, shown = cli("evaluate", "run", *words)
        assert code == 2
        assert told in shown


def test_other_data_are_read_with_the_columns_and_classes_of_the_run(project, cli):
    rows = [f"{(i % 3) + i / 100},{'cab'[i % 3]}" for i in range(60)]
    head = "v,label"
    (project / "numbers.csv").write_text("\n".join([head, *rows]) + "\n")
    (project / "line.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Line(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 3))\n\n"
        "    def forward(self, v):\n        return self.net(v.float().reshape(-1, 1))\n"
    )
    words = ["data=numbers.csv", "task=classification", "student=line:Line", "train.epochs=60", "train.lr=0.03"]
    (project / "line.yaml").write_text("student: line:Line\n")
    code, _, shown = cli("distill", "line.yaml", *words, "train.batch_size=16", "--out", "run")
    assert code == 0, shown
    assert Run("run").result["student"]["metric"] > 0.9
    (project / "few.csv").write_text(
        "v,label\n1.1,a\n1.2,a\n2.1,b\n"
    )  # one class is missing: the numbers must not shift
    assert json.loads(cli("evaluate", "run", "--data", "few.csv", "--json")[1])["metric"] == 1.0
    (project / "strange.csv").write_text("v,label\n1.1,a\n1.2,z\n")
    code, _, shown = cli("evaluate", "run", "--data", "strange.csv")
    assert code == 2
    assert "'z', an unknown class" in shown


def test_inspect_says_what_a_thing_is(project, cli):
    code, out, _ = cli("inspect")
    assert code == 0
    assert "torch" in out
    assert "'limbeck[data]'" in out or "datasets " in out
    cli("distill", "kd.yaml", "--out", "runs/one")
    assert "kd, made by limbeck" in cli("inspect", "runs/one")[1]
    assert "runs/one" in cli("inspect", "runs")[1]
    assert "paired: 96 train, 30 validation, 40 test" in cli("inspect", "tiny_data:paired")[1]
    _, out, _ = cli("inspect", "runs/one/student", "--data", "tiny_data:paired", "--json")
    places = json.loads(out)["taps"]
    assert places["fc2"] == {"type": "Linear", "parameters": 72, "shape": [8]}
    assert places["output"]["shape"] == [3]
    written = cli("inspect", "kd.yaml")[1]
    (project / "again.yaml").write_text(written)
    assert Recipe.load("again.yaml") == Recipe.load("kd.yaml")
    (project / "runs/one/result.json").unlink()
    assert "Go on with: limbeck resume runs/one" in cli("inspect", "runs/one")[1]
    code, _, shown = cli("inspect", "nowhere")
    assert code == 2
    assert "no such path here" in shown


def test_a_network_that_cannot_take_the_data_says_what_it_was_shown(project, cli):
    (project / "picky.py").write_text(
        "from torch import nn\n\n\nclass Picky(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(5, 2)\n\n    def forward(self, x):\n        return self.fc(x)\n"
    )
    code, _, shown = cli("inspect", "picky:Picky", "--data", "tiny_data:paired")
    assert code == 2
    assert "could not take two samples of tiny_data:paired (x [2, 4])" in shown
    assert cli("inspect", "picky:Picky", "--data", "kd.yaml")[0] == 2


def test_methods_are_listed_with_cards_and_options(project, cli):
    out = cli("methods")[1]
    assert all(name in out for name in ("kd", "mst-distill", "supervised"))
    out = cli("methods", "mst-distill")[1]
    assert "2507.07015" in out
    assert "hard | weighted" in out
    facts = json.loads(cli("methods", "kd", "--json")[1])
    assert facts["options"]["temperature"] == {"default": 4.0, "type": "float"}
    assert "distance to sg[x0 + (R - F) / nu] inside a segment of times" in cli("methods", "tdm")[1]
    assert json.loads(cli("methods", "tdm", "--json")[1])["play"]["ratio"] == "1 : 1, the critic first"
    assert "kd" not in [card["name"] for card in json.loads(cli("methods", "--needs", "hint", "--json")[1])]
    code, _, shown = cli("methods", "kdd")
    assert code == 2
    assert "Did you mean 'kd'?" in shown


def test_export_gives_the_shipped_bytes(project, cli):
    cli("distill", "kd.yaml", "--out", "run")
    code, out, _ = cli("export", "run")
    assert code == 0
    assert (project / out.strip()).read_bytes() == weights("run")
    code, _, shown = cli("export", "run", "--to", "diffusers")
    assert code == 2
    assert "no network of a pipeline of diffusers" in shown


@pytest.mark.parametrize(
    "verb",
    ["demo", "distill", "resume", "evaluate", "inspect", "methods", "export", "plan", "suggest", "cache", "compare"],
)
def test_every_verb_explains_itself(cli, verb):
    code, out, err = cli(verb, "-h")
    assert (code, err) == (0, "")
    assert f"limbeck {verb}" in out
    assert cli(verb, "--help")[1] == out


MINE = """
from limbeck import Card, Loss, Term, Transfer, Objective
from limbeck.methods.kd import KD


class Sharp(Transfer):
    card = Card("sharp", "Squared distance of the probabilities.")
    power: float = 2.0

    def objective(self):
        return Objective(Term(self.apart))

    def apart(self, student, teacher):
        return (student.softmax(-1) - teacher.softmax(-1)).abs().pow(self.power).sum(-1)


class Warmer(KD):
    temperature: float = 7.0
"""


def test_a_method_of_somebody_else_in_three_spellings(project, cli):
    (project / "mine.py").write_text(MINE)
    import mine
    import tiny_models

    base = (project / "kd.yaml").read_text().replace("method: {use: kd, temperature: 2}\n", "")
    cases = {
        "class": ("{use: 'mine:Sharp', power: 1.5}", ["method=mine:Sharp", "method.power=1.5"], mine.Sharp(power=1.5)),
        "sum": (
            "[{use: kd, temperature: 3}, 'tiny_models:gap']",
            ["method=kd+tiny_models:gap", "method.kd.temperature=3"],
            ["kd", "tiny_models:gap"],
        ),
    }
    for name, (written, words, made) in cases.items():
        (project / f"{name}.yaml").write_text(f"{base}method: {written}\n")
        (project / "bare.yaml").write_text(base)
        if name == "sum":
            made = KD(temperature=3) + mine.Term(tiny_models.gap)
        assert cli("distill", f"{name}.yaml", "--out", f"{name}-yaml")[0] == 0
        assert cli("distill", "bare.yaml", *words, "--out", f"{name}-words")[0] == 0
        distill("bare.yaml", out=f"{name}-python", method=made)
        assert weights(f"{name}-yaml") == weights(f"{name}-words") == weights(f"{name}-python")
        texts = {Run(f"{name}-{how}").recipe.to_yaml() for how in ("yaml", "words", "python")}
        assert len(texts) == 1
    assert weights("class-yaml") != weights("sum-yaml")
    assert Run("sum-yaml").result["method"] == "kd + gap"


def test_a_class_derived_from_kd_goes_by_its_own_name(project, cli):
    (project / "mine.py").write_text(MINE)
    code, _, shown = cli("distill", "kd.yaml", "method=kd+mine:Warmer", "method.Warmer.temperature=5", "--out", "run")
    assert code == 0, shown
    assert Run("run").result["method"] == "kd + Warmer"
    assert [member["temperature"] for member in Run("run").recipe.method] == [4.0, 5.0]
    code, _, shown = cli("distill", "kd.yaml", "method=kd+kd", "--out", "twice")
    assert code == 2
    assert "kd stands twice" in shown


def test_a_control_is_paid_for_once(project, cli):
    _, _, shown = cli("distill", "kd.yaml", "control=train", "--out", "runs/first")
    assert "now the control" in shown
    first = (project / "runs/first/control/log.jsonl").read_text()
    _, _, shown = cli("distill", "kd.yaml", "control=train", "method.temperature=6", "--out", "runs/second")
    assert "was trained before: runs/first/control" in shown
    assert "now the control" not in shown
    assert (project / "runs/second/control/log.jsonl").read_text() == first
    one, two = (Run(f"runs/{name}").result["control"] for name in ("first", "second"))
    assert one["figures"] == two["figures"]
    shutil.rmtree(project / "runs/first")
    assert Student("runs/second/control/student").model is not None
    _, _, shown = cli("distill", "kd.yaml", "control=train", "train.lr=0.02", "--out", "runs/third")
    assert "now the control" in shown  # another budget is another control


def test_a_mended_mistake_does_not_find_its_folder_taken(project, cli):
    code, _, _ = cli("distill", "kd.yaml", "teacher.args={inputs: 7, classes: 5}", "--out", "run")
    assert code == 2
    assert not (project / "run").exists()
    assert cli("distill", "kd.yaml", "--out", "run")[0] == 0


def test_objects_given_in_python_are_told_and_may_be_given_again(project):
    torch.manual_seed(0)

    class Local(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(7, 3)

        def forward(self, x, a):
            return self.fc(torch.cat([x, a], 1))

    teacher = Teacher(Local(), view=["x", "a"])
    first = distill("kd.yaml", out="live", teacher=teacher)
    written = (project / "live/recipe.yaml").read_text()
    assert re.search(r"teacher:\n\s+model: \{live: Local given in Python\}", written)
    stamp = (project / "live/result.json").stat().st_mtime_ns
    assert distill("kd.yaml", out="live", teacher=teacher).folder == first.folder  # finished: returns at once
    assert (project / "live/result.json").stat().st_mtime_ns == stamp
    again = distill(first, out="again", teacher=teacher)
    assert weights(again.folder) == weights(first.folder)
    with pytest.raises(
        RecipeError, match=r"Local given in Python, at teacher.model.*distill\(recipe, teacher=\.\.\.\)"
    ):
        distill(first, out="without")
    assert not (project / "without").exists()
    assert first.evaluate(["quality"])["metric"] == first.result["student"]["metric"]
    assert "live: Local given in Python" in first.recipe.to_yaml()


def test_resume_changes_only_what_may_change(project, cli):
    cli("distill", "kd.yaml", "--out", "run")
    code, _, shown = cli("resume", "run", "train.lr=3")
    assert code == 2
    assert "resume cannot change 'train.lr'" in shown
    code, out, _ = cli("resume", "run", "require=['retention >= 99']")
    assert code == 3
    assert "MISSED: retention >= 99" in out


def test_long_names_of_metrics_leave_room_for_the_names_of_models(project, cli):
    cli("distill", "kd.yaml", "task={use: classification, metric: mean_class_accuracy}", "--out", "run")
    out = cli("inspect", "run")[1]
    lines = out.splitlines()
    assert any("student, Net" in line and "%" in line for line in lines), out
    assert max(map(len, lines[1:])) <= 80
