"""The section on samples: the same rows for everyone, in order; ways and what each step predicts; what it costs; no markup from outside."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import limbeck
from limbeck.data.tensors import Data, TensorSplit
from limbeck.evaluation.samples import FILE, Generated
from limbeck.models.toy import Mixture
from limbeck.report import write
from limbeck.report.budget import LARGEST_PAGE
from limbeck.report.parts.samples import how
from limbeck.report.parts.ways import columns

EVIL = "</script><img src=x onerror=alert(1)>\"'&\u202e"
ROLES = ("teacher", "student", "control")
STEPS = {"teacher": 4, "student": 1, "control": 1}


class Section(HTMLParser):
    """Images with what they show, labels, and text of the section; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.labels, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "img":
            self.images.append((found["alt"], found["src"]))
            return
        self.open.append(tag)
        self.labels += [found["aria-label"]] if found.get("role") == "img" and "aria-label" in found else []

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def folder(
    tmp_path, kind="pictures", *, rows=10, shape=(1, 4, 4), conditions=(), classes=True, without=(), speed=False
):
    """A run of a generator that is nothing but its result and what was kept of it."""
    place = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    place.mkdir()
    g = torch.Generator().manual_seed(0)

    def drawn(*size):
        if kind == "pictures":
            return torch.randint(0, 256, (*size, *shape), generator=g, dtype=torch.uint8)
        return torch.randn(*size, *shape, generator=g)

    roles = [who for who in ROLES if who not in without]
    entry = {"name": "Net", "metric": 0.1, "parameters": 10, "bytes": 40, "view": ["x"]}
    result = {
        "name": "made",
        "split": "test",
        "task": {"name": "generation", "metric": "mmd", "higher_is_better": False},
    }
    for i, who in enumerate(roles):
        times = {"latency_ms": 8.0 / (i + 1)} | (
            {"speed": {"median_ms": 6.0 / (i + 1), "p95_ms": 9.5, "batch_size": 32, "samples_per_second": 321.0}}
            if speed
            else {}
        )
        result[who] = entry | times | {"figures": {"evaluations": STEPS[who]}}
    (place / "result.json").write_text(json.dumps(result))
    facts = {
        who: {"steps": STEPS[who], "solver": "ddim", "guidance": 1.0, "start": 1.0, "noise": "flow", "same_noise": True}
        for who in roles
    }
    tensors = {"id": torch.arange(50, 50 + rows), "ways": torch.arange(min(rows, 6))}
    if kind != "other":
        tensors["real"] = drawn(rows)
        for who in roles:
            n = STEPS[who]
            tensors |= {f"{who}.samples": drawn(rows), f"{who}.states": drawn(min(rows, 6), n + 1)}
            tensors |= {f"{who}.denoised": drawn(min(rows, 6), n), f"{who}.times": torch.linspace(1, 0, n + 1)}
    Generated(kind, shape, tuple(conditions), classes, facts, tensors).save(place / FILE)
    return place


def part(*folders):
    """The section of a page, as text and taken apart."""
    page = write(folders, Path(folders[0]) / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<section id="samples">.*?</section>', page, flags=re.DOTALL)
    text = found.group(0) if found else ""
    return text, Section(text), page


def pixels(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_page_about_samples_says_nothing_of_classes_told_apart(tmp_path):
    _, _, page = part(folder(tmp_path))
    sections = re.findall(r'<section id="(\w+)"', page)
    assert "samples" in sections
    assert not {"confusion", "disagreement", "calibration"} & set(sections)


def test_the_grid_has_a_row_for_everyone_and_a_column_for_every_row_of_the_data(tmp_path):
    names = [f"class {i}" for i in range(10)]
    place = folder(tmp_path, conditions=names)
    text, seen, _ = part(place)
    kept = load_file(place / FILE)
    grid = [(alt, src) for alt, src in seen.images if alt]
    who = {"data": "real"} | {role: f"{role}.samples" for role in ROLES}
    order = [(role, i) for band in (range(8), range(8, 10)) for role in who for i in band]
    assert [alt for alt, _ in grid] == [f"{role}, class {i}" for role, i in order]
    for (role, i), (_, src) in zip(order, grid):
        assert (pixels(src) == kept[who[role]][i, 0].numpy()).all()
    below = re.findall(r'<tr class="asked">.*?</tr>', text)
    assert [re.findall(r"<bdi>(.*?)</bdi>", row) for row in below] == [names[:8], names[8:]]
    assert (
        "10 rows of the test split: the data, and what each network makes for the same rows from the same noise"
        in seen.text
    )


def test_strips_show_every_state_and_every_prediction_with_its_time(tmp_path):
    place = folder(tmp_path)
    text, seen, _ = part(place)
    kept = load_file(place / FILE)
    strips = re.findall(r'<div class="film" role="img" aria-label="([^"]*)">(.*?)</div>', text)
    wanted = [(what, i, who) for what in ("states", "denoised") for i in range(4) for who in ("teacher", "student")]
    assert len(strips) == len(wanted)
    for (what, i, who), (label, strip) in zip(wanted, strips):
        steps, values = STEPS[who], kept[f"{who}.{what}"][i, :, 0]
        shots = re.findall(r'grid-column:(\d+)"><img src="([^"]+)" alt=""><small>([^<]+)</small>', strip)
        assert len(shots) == (steps + 1 if what == "states" else steps)
        assert all((pixels(src) == value.numpy()).all() for (_, src, _), value in zip(shots, values))
        times = ["1", "0.75", "0.5", "0.25", "0"] if who == "teacher" else ["1", "0"]
        assert [time for *_, time in shots] == times[: len(shots)]
        places = [1, 2, 3, 4, 5] if who == "teacher" else [1, 5]
        assert [int(column) for column, *_ in shots] == places[: len(shots)]
        assert (
            label
            == f"{who}, row {50 + i}: {'x_t' if what == 'states' else 'x0'} at times {', '.join(times[: len(shots)])}"
        )
    assert "Both begin with the same noise." in seen.text
    assert "shares of noise" in seen.text


def test_points_are_drawn_on_the_same_axes_for_everyone(tmp_path):
    place = folder(tmp_path, "points", rows=30, shape=(2,), conditions=["ash", "beech", "cedar"] * 10)
    text, _, _ = part(place)
    charts = [ET.fromstring(svg) for svg in re.findall(r'<svg class="chart.*?</svg>', text, flags=re.DOTALL)]
    titles = [chart.findtext("title") for chart in charts]
    assert titles == [
        *(f"samples: {who}" for who in ("data", *ROLES)),
        *(f"From noise to the sample: {who}" for who in ("teacher", "student")),
        *(f"What each step takes for the sample: {who}" for who in ("teacher", "student")),
    ]
    for some in (charts[:4], charts[4:6], charts[6:]):
        ticks = [[e.text for e in chart.iter() if e.get("class") == "tick"] for chart in some]
        assert ticks == ticks[:1] * len(some)
    for chart in charts[:4]:
        dots = [e for e in chart.iter() if (e.get("class") or "").startswith("dots")]
        assert [e.get("class") for e in dots] == ["dots c0", "dots c1", "dots c2"]
        assert [e.get("d").count("M") for e in dots] == [10] * 3
    for chart, marks in zip(charts[4:], (5, 2, 4, 1)):
        assert len([e for e in chart.iter() if (e.get("class") or "").startswith("mark")]) == 6 * marks
        assert "at times 1" in chart.findtext("desc")
    rings = [[(e.get("cx"), e.get("cy")) for e in c.iter() if "begin" in (e.get("class") or "")] for c in charts[4:6]]
    assert [len(r) for r in rings] == [6, 6]
    assert text.count("<li>") == 3 * 3  # classes, three times


def test_without_classes_points_have_the_colour_of_who_made_them(tmp_path):
    text, seen, _ = part(folder(tmp_path, "points", shape=(2,), without=("teacher", "control")))
    assert set(re.findall(r'<path class="(dots \w+)"', text)) == {"dots real", "dots student", "dots behind"}
    assert "Both begin" not in seen.text
    assert "row 50" in seen.text


def test_no_prompt_becomes_markup(tmp_path):
    prompts = [f"{EVIL}{i}" * 4 for i in range(10)]
    for place in (
        folder(tmp_path, conditions=prompts, classes=False),
        folder(tmp_path, "points", shape=(2,), conditions=prompts),
    ):
        said = Generated.load(place / FILE)
        said.facts["student"] |= {"solver": EVIL, "noise": EVIL, "switch": EVIL}
        said.save(place / FILE)
        text, seen, page = part(place)
        assert "onerror=alert(1)&gt;" in text
        assert not re.search(r"<img src=x", text)
        assert "\u202e" not in text
        assert page.count("</script>") == 1
        assert all(src.startswith("data:") for _, src in seen.images)


def test_the_page_stays_small_and_the_rest_is_left_out(tmp_path):
    folders = [folder(tmp_path, rows=16, shape=(3, 96, 96), conditions=["a"] * 16) for _ in range(2)]
    text, seen, page = part(folders[0])
    assert len(page.encode()) < LARGEST_PAGE
    assert len([1 for alt, _ in seen.images if alt]) >= 4 * 8
    text, seen, page = part(*folders)
    assert len(page.encode()) < LARGEST_PAGE
    assert text.count("<details") == 2


def test_what_cannot_be_shown_is_a_sentence(tmp_path):
    _, seen, _ = part(folder(tmp_path, "other", shape=(4, 8, 8)))
    assert "Samples of shape [4, 8, 8] are neither points in the plane nor pictures" in seen.text
    assert "4 steps of ddim" in seen.text
    place = folder(tmp_path)
    (place / FILE).unlink()
    _, seen, _ = part(place)
    assert "No samples were kept to look at." in seen.text
    place = folder(tmp_path)
    whole = Generated.load(place / FILE)
    few = {
        name: values
        for name, values in whole.tensors.items()
        if name.split(".")[-1] in ("id", "ways", "real", "samples")
    }
    Generated(whole.kind, whole.shape, (), True, {}, few).save(place / FILE)
    _, seen, _ = part(place)
    assert seen.text.count("no way was kept") == 2


def test_runs_that_generate_nothing_have_no_such_section(make_run):
    text, _, page = part(make_run())
    assert text == ""
    assert "What it generates" not in page


def rows_of(text):
    body = re.search(r"<tbody>(<tr><th scope=\"row\" data-key=\"teacher\">.*?)</tbody>", text, flags=re.DOTALL)
    return [re.findall(r'data-key="([^"]*)"', row) for row in re.findall(r"<tr>(.*?)</tr>", body.group(1))]


def test_evaluations_and_latency_stand_side_by_side(tmp_path):
    text, seen, _ = part(folder(tmp_path))
    assert rows_of(text) == [
        ["teacher", "4.0", "8.0", "2.0", "", ""],
        ["student", "1.0", "4.0", "4.0", "4.0", "2.0"],
        ["control", "1.0", str(8 / 3), str(8 / 3), "4.0", "3.0"],
    ]
    assert "over a few samples: the check speed, which was not asked for" in seen.text
    text, seen, _ = part(folder(tmp_path, speed=True))
    assert rows_of(text)[1] == ["student", "1.0", "3.0", "3.0", "9.5", "321.0", "4.0", "2.0"]
    assert "a batch of 32 (the check speed)" in seen.text


def test_how_a_network_samples_in_words():
    assert how({}) == "–"
    assert how({"steps": 1, "solver": "ddim", "guidance": 1.0, "start": 1.0}) == "1 step of ddim"
    assert (
        how({"steps": 4, "solver": "heun", "guidance": 7.5, "start": 0.98})
        == "4 steps of heun, guidance 7.5, from 0.98 of the noise"
    )
    assert how({"steps": 4, "solver": "ddim", "switch": 2}) == "4 steps of ddim, the first 2 by its base model"


def test_few_pictures_stand_among_many_columns_each_in_its_own():
    assert columns(9, 9) == list(range(1, 10))
    assert columns(2, 9) == [1, 9]
    assert columns(3, 9) == [1, 5, 9]
    assert columns(1, 9) == [1]
    for of in range(1, 12):
        for steps in range(1, of + 1):
            assert len(set(columns(steps, of))) == steps


def test_a_run_leaves_a_page_that_is_made_again_without_its_networks(tmp_path):
    means = [[-1.0, 0.0], [1.0, 0.5]]
    x, label = Mixture(means, 0.1, labels=[0, 1]).draw(48, torch.Generator().manual_seed(0))
    parts = {"train": (0, 24), "validation": (24, 36), "test": (36, 48)}
    splits = {name: TensorSplit({"x": x[a:b], "label": label[a:b]}, a) for name, (a, b) in parts.items()}
    run = limbeck.distill(
        task="generation",
        data=Data(splits, {"x": "points", "label": ""}, {"label": ["ash", "beech"]}, source="points"),
        teacher={"model": "limbeck.models.toy:Mixture", "args": {"means": means, "std": 0.1, "labels": [0, 1]}},
        student={"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8, "classes": 2}},
        method={"use": "consistency", "discretisation": 4, "sampling_steps": 2},
        train={"steps": 2, "batch_size": 12},
        control="start",
        out=tmp_path / "run",
    )
    seen, answers = Generated.load(run.folder / FILE), load_file(run.folder / "predictions.safetensors")
    place = {int(i): k for k, i in enumerate(answers["id"])}
    rows = [place[int(i)] for i in seen.tensors["id"]]
    for who in ROLES:
        torch.testing.assert_close(seen.of(who), answers[f"{who}.outputs"][rows, :2])
    assert seen.of("student", "states").shape == (6, 3, 2)
    assert seen.of("teacher", "states").shape == (6, 21, 2)
    first = (run.folder / "report.html").read_text()
    shutil.rmtree(run.folder / "student")
    assert write([run.folder], run.folder).read_text() == first
    assert '<section id="samples">' in first
    assert "Between its steps the student is given noise anew" in first


@pytest.mark.browser
def test_a_browser_shows_it_without_a_script(tmp_path):
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: looked for chromium, chromium-browser and google-chrome on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place = folder(
        tmp_path, rows=16, conditions=["a long prompt of many words that has to be broken"] * 16, classes=False
    )
    path = write([place], place)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for width in (1400, 390):
            context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=False)
            page = context.new_page()
            page.goto(path.as_uri())
            wide = page.locator("html").evaluate("e => [e.scrollWidth, e.clientWidth]")
            assert wide[0] <= wide[1]
            sizes = page.locator("#samples img").evaluate_all("all => all.map(i => [i.naturalWidth, i.clientWidth])")
            assert len(sizes) == 16 * 4 + 4 * (5 + 2 + 4 + 1)
            assert all(natural == 4 and shown >= 20 for natural, shown in sizes)
            context.close()
        browser.close()
