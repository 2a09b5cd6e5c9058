"""The page as a whole: every part there, or a sentence in its place; several runs compared; nothing loaded."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.errors import RecipeError
from limbeck.report import write
from limbeck.report.budget import LARGEST_PAGE

SECTIONS = ["result", "cost", "learning", "confusion", "disagreement", "calibration", "findings", "notices", "making"]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Sections, text and addresses of a page; fails where tags are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        if tag == "section":
            self.sections.append(found["id"])
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += " " + data


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_a_whole_run_has_every_part(make_run, tmp_path):
    path = write([make_run()], tmp_path / "report.html")
    page = read(path)
    assert page.sections == SECTIONS
    assert "missing" not in path.read_text().split("</style>")[1]
    assert page.tags.count("img") == 22  # eleven samples on which they differ, each seen and heard
    text = re.sub(r"\s+", " ", page.text)
    for said in (
        "digits-1", "LeNet5 , given only image , learned by kd", "gain of 2.1 points", "more than chance would give",
        "91.0 % of the teacher’s", "retention >= 0.97", "missed", "61 706", "247 kB", "0.610 ms", "true class",
        "calibration error", "The student never hears the recordings.", "limbeck distill digits-1.yaml seed=0",
        "method: kd", "only the teacher right", "Which layer learns.", "torch", "60 steps", "31.2 s of work",
    ):  # fmt: skip
        assert said in text.replace("\u202f", " "), said


def test_nothing_is_loaded_from_anywhere(make_run, tmp_path):
    path = write([make_run()], tmp_path / "report.html")
    page = read(path)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.tags.count("script") == 1
    assert page.handlers == []
    text = path.read_text()
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert not re.search(r"url\((?!data:)", text)
    assert "http" not in text.replace("http-equiv", "")


def test_every_chart_is_well_formed_and_described(make_run, tmp_path):
    text = write([make_run()], tmp_path / "report.html").read_text()
    charts = re.findall(r'<svg class="(?:chart|spark)[^"]*".*?</svg>', text, flags=re.DOTALL)
    assert len(charts) > 15
    for chart in charts:
        root = ET.fromstring(chart)
        assert root.findtext("title")
        assert root.find("desc") is not None


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (("teacher",), "Without stored answers of a teacher there is nothing to disagree with."),
        (("control",), "There is no control’s curve."),
        (("samples.safetensors",), "No samples were kept to look at."),
        (("predictions.safetensors",), "Confusion matrices need stored predictions"),
        (("log.jsonl",), "There is no log, so there are no learning curves."),
        (("recipe.yaml",), "No recipe was kept."),
        (("environment.json",), "No facts about the machine were kept."),
        (("student", "teacher", "control"), "No model was measured"),
    ],
)
def test_what_is_missing_is_a_sentence(make_run, tmp_path, without, sentence):
    folder = make_run(without=without)
    if "control" in without:
        (folder / "control" / "log.jsonl").unlink()
    page = read(write([folder], tmp_path / "report.html"))
    assert sentence in page.text
    assert [key for key in SECTIONS if key in page.sections] == page.sections


def test_only_a_result_is_enough(make_run, tmp_path):
    names = ("log.jsonl", "control/log.jsonl", "predictions.safetensors", "samples.safetensors", "findings.json")
    path = write([make_run(without=(*names, "recipe.yaml", "environment.json"))], tmp_path / "report.html")
    assert read(path).sections == [key for key in SECTIONS if key != "findings"]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "result.json").write_text('{"name": "bare"}')
    assert "This run measured no student." in read(write([tmp_path / "bare"], tmp_path / "bare.html")).text


def lower_is_better(result):
    result["task"] = {"name": "regression", "metric": "rmse", "higher_is_better": False, "labels": None}
    for role, value in (("student", 1.2), ("teacher", 1.0), ("control", 1.5)):
        result[role]["metric"] = value
        result[role]["figures"] = {"rmse": value, "r2": None}
    result["difference"] = {"mean": -0.3, "low": -0.5, "high": -0.1, "level": 0.95, "how": "paired bootstrap"}


def test_a_metric_of_which_less_is_better(make_run, tmp_path):
    page = read(write([make_run(change=lower_is_better)], tmp_path / "report.html"))
    text = re.sub(r"\s+", " ", page.text)
    assert "gain of 0.3" in text
    assert "Down and to the left is better." in text
    assert "better" in text
    assert "R²" in text


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({"mean": -0.05, "low": -0.08, "high": -0.02}, "here, distilling did harm"),
        ({"mean": 0.01, "low": -0.02, "high": 0.03}, "chance alone could have given it"),
        ({"mean": 0.01, "low": None, "high": None}, "no interval is known"),
    ],
)
def test_the_page_says_what_the_interval_allows(make_run, tmp_path, difference, said):
    folder = make_run(change=lambda result: result.update(difference=difference | {"level": 0.95}))
    assert said in read(write([folder], tmp_path / "report.html")).text


def test_without_a_written_difference_it_is_drawn_from_the_predictions(make_run, tmp_path):
    page = read(write([make_run(change=lambda result: result.update(difference=None))], tmp_path / "report.html"))
    assert "the same student without a teacher" in page.text


def test_several_runs_are_compared(make_run, tmp_path):
    folders = [make_run(f"kd-{seed}", seed=seed) for seed in range(3)]
    other = make_run("rkd-0", seed=7, change=lambda result: result.update(method="rkd"))
    page = read(write([*folders, other], tmp_path / "report.html"))
    text = re.sub(r"\s+", " ", page.text)
    assert "4 runs beside each other" in text
    assert "The student of kd reaches an accuracy of" in text
    assert "over 3 seeds" in text
    assert "The best" not in text  # with seeds, the mean is what counts
    assert "mean ± sd" in text
    assert "one seed, none" in text
    assert page.tags.count("details") > 12
    assert text.count("The student never hears the recordings.") == 1


def test_runs_of_one_seed_each_have_no_table_over_seeds(make_run, tmp_path):
    methods = [make_run(m, change=lambda result, m=m: result.update(method=m)) for m in ("kd", "rkd")]
    text = read(write(methods, tmp_path / "report.html")).text
    assert "mean ± sd" not in text
    assert "flattered a little" in text


def test_what_cannot_be_reported_is_said(make_run, tmp_path):
    with pytest.raises(RecipeError, match="at least one run folder"):
        write([], tmp_path / "report.html")
    with pytest.raises(RecipeError, match=r"accuracy, rmse.*page of its own"):
        write([make_run(), make_run(change=lower_is_better)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_where_it_is_written(make_run, tmp_path):
    folder = make_run()
    assert write([folder], folder) == folder / "report.html"
    deep = write([folder], tmp_path / "a" / "b" / "page.html")
    assert deep.exists()
    assert list(deep.parent.iterdir()) == [deep]
    assert write([str(folder)], deep) == deep


def test_an_unfinished_run_says_so(make_run, tmp_path):
    folder = make_run(change=lambda result: result.update(status="stopped"))
    assert "(stopped)" in read(write([folder], tmp_path / "report.html")).text


def test_a_large_comparison_stays_small(make_run, tmp_path):
    folders = [
        make_run(
            f"run-{i}", seed=i, classes=100, samples=3000, steps=300, image=(3, 160, 160), terms=tuple("abcdefghij")
        )
        for i in range(8)
    ]
    path = write(folders, tmp_path / "report.html")
    assert path.stat().st_size < LARGEST_PAGE
    assert "deepest cells are drawn" in read(path).text


def test_only_samples_on_which_they_differ_are_shown(make_run, tmp_path):
    folder = make_run()
    answers = load_file(folder / "predictions.safetensors")
    same = answers["student.logits"].argmax(1) == answers["teacher.logits"].argmax(1)
    kept = torch.cat([answers["id"][same][:3], answers["id"][~same][:2], torch.tensor([-5])])
    save_file({"id": kept, "image": torch.rand(6, 1, 4, 4)}, folder / "samples.safetensors")
    page = read(write([folder], tmp_path / "report.html"))
    assert page.tags.count("img") == 2
    save_file({"id": kept[:3].clone(), "image": torch.rand(3, 1, 4, 4)}, folder / "samples.safetensors")
    page = read(write([folder], tmp_path / "report.html"))
    assert "No samples were kept on which they disagree." in page.text


def test_stages_with_terms_of_their_own_have_panels_of_their_own(make_run, tmp_path):
    folder = make_run()
    stages = [
        ("warm", "student", "hint"),
        ("masks", "mask 1", "drift"),
        ("masks", "mask 2", "drift"),
        ("last", "student", "task"),
    ]
    lines = [
        json.dumps(
            {"step": step, "epoch": 0, "stage": stage, "trainee": who, "terms": {term: {"value": 1.0 / (step + 1)}}}
        )
        for stage, who, term in stages
        for step in range(9)
    ]
    (folder / "log.jsonl").write_text("\n".join(lines))
    text = write([folder], tmp_path / "report.html").read_text()
    titles = re.findall(r"<title>(terms of the loss[^<]*)</title>", text)
    assert titles == ["terms of the loss, warm", "terms of the loss, masks", "terms of the loss, last"]
    assert "mask 1, drift" in text
    assert "task of the control" in text.split("terms of the loss, last")[1]
    assert "drawn to end with it" in text


def test_findings_of_every_shape(make_run, tmp_path):
    folder = make_run()
    blocks = [
        {"kind": "heatmap", "title": "Signed", "rows": ["a"], "columns": ["x", "y"], "values": [[-1, None]]},
        {"kind": "heatmap", "title": "Words", "rows": ["a"], "columns": ["x"], "values": [["high"]]},
        {"kind": "bars", "title": "Plain", "rows": ["a", "b"], "values": [1, 2]},
        {"kind": "bars", "title": "Many", "rows": ["a"], "columns": ["p", "q"], "values": [[1, 2]]},
        {"kind": "scroll", "title": "Unknown", "rows": ["a"], "columns": ["x"], "values": [[1]]},
        {"kind": "table", "title": "Ragged", "rows": ["a", "b"], "columns": ["x", "y"], "values": [[1], [1, 2, 3]]},
        {"kind": "table", "title": "Empty"},
        {"kind": "heatmap", "title": "Huge", "rows": list(range(200)), "columns": list(range(200)), "values": [[1] * 200] * 200},
    ]  # fmt: skip
    (folder / "findings.json").write_text(json.dumps(blocks))
    text = read(write([folder], tmp_path / "report.html")).text
    for block in blocks:
        assert str(block["title"]) in text
    assert "Empty: this finding holds no values." in text


def test_of_many_runs_one_of_each_kind_is_told_and_all_are_counted(make_run, tmp_path):
    def named(method):
        return lambda result: result.update(method=method)

    kinds = ["kd", "rkd", "sp", "at", "crd"]
    folders = [
        make_run(f"{kind}-{s}", seed=5 * s + i, change=named(kind)) for i, kind in enumerate(kinds) for s in range(3)
    ]
    page = write(folders, tmp_path / "report.html")
    text = re.sub(r"\s+", " ", read(page).text)
    assert "15 runs beside each other" in text
    assert "The page goes into 5 of them, one of each kind; means and intervals count all 15." in text
    assert "Of 5 kinds of runs, these came out best." in text
    assert text.count("over 3 seeds") == 3
    assert "kd-0" in text
    assert "kd-1" not in text
    few = write(folders[:4], tmp_path / "few.html")
    assert page.stat().st_size < 2.2 * few.stat().st_size
