"""From a finished run to a shipped student: every format answers as PyTorch does, and can be measured again."""

from __future__ import annotations

import base64
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck import RecipeError, Run, Student, Task, distill
from limbeck.shipping import checking, exporting, opened
from limbeck.shipping.package import Rows

onnxruntime = pytest.importorskip("onnxruntime")
_found = runpy.run_path(str(Path(__file__).with_name("conftest.py")))  # by path: other folders have a conftest too
DATA, KD, MODELS = (_found[name] for name in ("DATA", "KD", "MODELS"))

MORE = '''
import torch
from torch import nn


class Conv(nn.Module):
    """Convolves its four numbers as a picture of two by two."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 8, 2), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.norm(self.conv(x.reshape(-1, 1, 2, 2))).relu().flatten(1))


class Both(nn.Module):
    """Sees x, and hears a where it is there."""

    def __init__(self):
        super().__init__()
        self.x, self.a = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x, a=None):
        return self.x(x) if a is None else self.x(x) + self.a(a)


class Choosy(Both):
    def forward(self, x):
        if x.sum() > 0:
            return self.x(x)
        return self.x(-x)


class Fixed(Both):
    def forward(self, x):
        return torch.stack([self.x(row) for row in x])


class Writes(Both):
    def forward(self, x):
        x += 1
        return self.x(x)
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project folder with three finished runs: `run` (one column), `conv` (convolutions), `both` (two columns)."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for name, text in (("tiny_models", MODELS), ("tiny_data", DATA), ("more_models", MORE)):
            (folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        (folder / "kd.yaml").write_text(KD)
        torch.set_num_threads(1)
        distill("kd.yaml", "train.lr=0.03", out="run")
        distill("kd.yaml", "student={model: 'more_models:Conv', view: x}", out="conv")
        distill("kd.yaml", "student={model: 'more_models:Both', view: {named: {x: x, a: a}}}", out="both")
        yield folder
    for name in ("tiny_models", "tiny_data", "more_models"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _here(finished, monkeypatch):
    monkeypatch.chdir(finished)
    monkeypatch.syspath_prepend(str(finished))


@pytest.fixture(scope="module")
def shipped(finished):
    """Each export once: a function of run, format and quantisation that gives the path."""
    made: dict[tuple[str, ...], Path] = {}

    def path(run: str, to: str, quantize: str = "none") -> Path:
        if (run, to, quantize) not in made:
            made[run, to, quantize] = Run(run).export(to, quantize=quantize)
        return made[run, to, quantize]

    return path


def answers(run: str) -> torch.Tensor:
    return load_file(f"{run}/predictions.safetensors")["student.logits"]


def rows(run: str):
    return Run(run).recipe.build_data()["test"].__getitems__(list(range(40)))


@pytest.mark.parametrize("run", ["run", "conv"])
def test_onnx_answers_as_pytorch_for_any_batch(run, shipped):
    written = shipped(run, "onnx")
    assert written == Path(run, "export/onnx/student.onnx")
    session = onnxruntime.InferenceSession(written)
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("x", ["batch", 4])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3])]
    x = rows(run)["x"].numpy()
    for size in (1, 7, 40):
        got = torch.from_numpy(session.run(None, {"x": x[:size]})[0])
        torch.testing.assert_close(got, answers(run)[:size], rtol=0, atol=1e-6)


def test_an_onnx_file_holds_the_student_and_nothing_else(shipped):
    import onnx

    graph = onnx.load(shipped("run", "onnx")).graph
    student = Student("run")
    numbers = sum(int(torch.tensor(t.dims).prod()) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert numbers == student.parameters_count()
    assert "Dropout" not in {node.op_type for node in graph.node}


def test_what_is_checked_is_written_down_and_on_the_card(capsys):
    from limbeck.cli import main

    with pytest.raises(SystemExit) as left:
        main(["export", "run", "--to", "onnx", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert not left.value.code
    assert facts["check"]["samples"] == 40
    assert 0 <= facts["check"]["largest_error"] <= facts["check"]["tolerance"]
    assert facts["check"]["tolerance"] == pytest.approx(1e-4 * max(1, float(answers("run").abs().max())))
    assert (facts["view"], facts["labels"], facts["parameters"]) == ("x", ["red", "green", "blue"], 139)
    card = Path("run/export/onnx/README.md").read_text()
    result = Run("run").result
    assert f"| this student | {result['student']['metric']:.4f} | 139 |" in card
    assert f"| teacher | {result['teacher']['metric']:.4f} |" in card
    assert "on 40 real samples: largest error" in card
    assert 'InferenceSession("student.onnx")' in card


def test_the_card_is_one_that_the_hub_reads():
    hub = pytest.importorskip("huggingface_hub")
    result = Run("run").result
    card = hub.ModelCard.load("run/student/README.md")
    assert card.data.model_name == "run"
    told = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert told["accuracy"] == pytest.approx(result["student"]["metric"], abs=1e-6)
    assert told["ece"] == pytest.approx(result["student"]["figures"]["ece"], abs=1e-6)
    assert card.data.eval_results[0].dataset_name == "paired"


def test_torch_export_opens_without_the_code(shipped):
    program = torch.export.load(shipped("run", "torch-export")).module()
    x = rows("run")["x"]
    for size in (1, 7, 40):
        torch.testing.assert_close(program(x[:size])[0], answers("run")[:size], rtol=0, atol=1e-6)


def test_safetensors_is_the_student_folder():
    written = Run("run").export("safetensors")
    assert written.read_bytes() == Path("run/student/model.safetensors").read_bytes()
    torch.testing.assert_close(Student(written.parent).model.eval()(rows("run")["x"]), answers("run"))


@pytest.mark.parametrize(("run", "how"), [("run", "dynamic"), ("conv", "static, calibrated on training samples")])
def test_int8_says_what_it_costs(run, how, shipped):
    written = shipped(run, "onnx", "int8")
    facts = opened.facts_of(written)
    assert facts["how"] == how
    told = facts["int8"]
    accuracy = Run(run).result["student"]["metric"]
    assert (told["name"], told["samples"]) == ("accuracy", 40)
    assert told["before"] == pytest.approx(accuracy)
    session = onnxruntime.InferenceSession(written)
    got = torch.from_numpy(session.run(None, {"x": rows(run)["x"].numpy()})[0])
    target = rows(run)["label"]
    assert told["after"] == pytest.approx(float((got.argmax(1) == target).double().mean()))
    assert told["agreement"] == pytest.approx(float((got.argmax(1) == answers(run).argmax(1)).double().mean()))
    assert 0 < float((got - answers(run)).abs().max()) < 0.5  # it is another model, but not a wrong one
    assert f"{told['before']:.4f} before, {told['after']:.4f} after" in (written.parent / "README.md").read_text()


def test_int8_of_torch_export_opens_without_torchao(shipped):
    pytest.importorskip("torchao")
    written = shipped("run", "torch-export", "int8")
    got = torch.export.load(written).module()(rows("run")["x"])[0].detach()
    assert 0 < float((got - answers("run")).abs().max()) < 0.5
    state = torch.export.load(written).state_dict
    assert any(tensor.dtype == torch.int8 for tensor in state.values())
    assert not any("fc1.weight" in name and t.dtype == torch.float32 and t.shape == (8, 4) for name, t in state.items())


def test_a_difference_above_the_tolerance_is_a_failure_and_leaves_what_was_there(monkeypatch, shipped):
    written = shipped("run", "onnx")
    stamp = written.read_bytes()
    monkeypatch.setattr(checking, "TOLERANCE", -1.0)
    with pytest.raises(RecipeError, match=r"the onnx file differs from PyTorch by up to .* on 40 real samples"):
        Run("run").export("onnx")
    assert written.read_bytes() == stamp
    assert not list(Path("run/export").glob(".*"))


def test_what_is_not_there_is_said():
    for words, told in (
        ({"to": "onx"}, "unknown export 'onx'. Did you mean 'onnx'?"),
        ({"to": "sentence-transformers"}, "not there yet"),
        ({"to": "onnx", "quantize": "int7"}, "Did you mean 'int8'?"),
        ({"to": "safetensors", "quantize": "int8"}, "There is int8 with --to torch-export or onnx"),
        ({"to": "transformers"}, "the student is a Net, no model of transformers"),
        ({"to": "onnx", "push": "no-slash"}, "a repository is owner/name"),
    ):
        with pytest.raises(RecipeError, match=told.replace("?", r"\?").replace(".", r"\.")):
            Run("run").export(**words)


@pytest.mark.parametrize(
    ("name", "why"), [("Choosy", "decides by the values of its tensors"), ("Fixed", "fixed batch size")]
)
def test_what_is_no_single_graph_is_refused_before_training_with_the_alternative(name, why, tmp_path):
    keys = ["student={model: 'more_models:" + name + "', view: x}", "train.steps=1"]
    for to in ("onnx", "torch-export") if name == "Choosy" else ("onnx",):
        with pytest.raises(
            RecipeError, match=rf"{name} cannot be written as one graph for {to}: .*{why}.*--to safetensors"
        ) as told:
            distill("kd.yaml", *keys, f"export={to}", out=tmp_path / "run")
        if name == "Choosy":
            line = MORE.splitlines().index("        if x.sum() > 0:") + 1
            assert f"(more_models.py, line {line}: if x.sum() > 0:)" in str(told.value)
        assert not (tmp_path / "run").exists()
    run = distill("kd.yaml", *keys, "export=safetensors", out=tmp_path / "run")
    assert (run.folder / "export/safetensors/model.safetensors").exists()
    with pytest.raises(RecipeError, match="--to safetensors"):
        run.export("onnx")


def test_an_export_that_fails_at_the_end_does_not_cost_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "TOLERANCE", -1.0)
    run = distill("kd.yaml", "train.steps=2", "export=onnx", out=tmp_path / "run")
    assert run.result["status"] == "finished"
    assert any(note.startswith("not exported to onnx: ") for note in run.result["notices"])
    assert not (run.folder / "export/onnx").exists()


def test_a_run_whose_recipe_cannot_be_read_still_exports(tmp_path):
    run = distill("kd.yaml", "train.steps=2", out=tmp_path / "run")
    (run.folder / "recipe.yaml").write_text("limbeck: 0.0.1\nkd_weight: 3\n")
    assert run.export("safetensors").exists()
    with pytest.raises(RecipeError, match=r"--data FILE. Without data: --to safetensors"):
        run.export("onnx")
    written = run.export("onnx", data="tiny_data:paired")
    assert opened.facts_of(written)["check"]["samples"] == 40


def test_a_recipe_exports_at_the_end_also_a_student_given_in_python(tmp_path):
    run = distill(
        "kd.yaml",
        "train.steps=2",
        "export=[onnx, safetensors]",
        out=tmp_path / "run",
        student=Student(torch.nn.Linear(4, 3), view="x"),
    )
    assert {p.name for p in (run.folder / "export").iterdir()} == {"onnx", "safetensors"}
    assert any(note.startswith("exported: ") and "largest error" in note for note in run.result["notices"])
    session = onnxruntime.InferenceSession(run.folder / "export/onnx/student.onnx")
    got = session.run(None, {"x": rows("run")["x"].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), answers(str(run.folder)), rtol=0, atol=1e-6)


def test_an_unfinished_run_has_no_student(tmp_path):
    (tmp_path / "recipe.yaml").write_text(KD)
    with pytest.raises(RecipeError, match="no student yet.*limbeck resume"):
        Run(tmp_path).export("onnx")


def test_evaluate_takes_any_exported_form(capsys, shipped):
    from limbeck.cli import main

    run = Run("run")
    own = run.evaluate(["fidelity", "speed"], batch_size=8, repeats=3)
    places = ["run/student", run.export("safetensors"), shipped("run", "onnx"), shipped("run", "torch-export").parent]
    for place in places:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["evaluate", str(place), "fidelity", "speed", "batch_size=8", "repeats=3", "--json"])
        entry = json.loads(capsys.readouterr().out)
        assert entry["figures"] == pytest.approx(own["figures"], abs=1e-6)
        assert (entry["parameters"], entry["samples"], entry["retention"]) == (139, 40, own["retention"])
        assert entry["speed"]["batch_size"] == 8
        assert 0 < entry["speed"]["median_ms"] <= entry["speed"]["p95_ms"]
        assert entry["speed"]["samples_per_second"] == pytest.approx(8000 / entry["speed"]["batch_median_ms"])
    assert own["retention"] == pytest.approx(run.result["retention"])
    assert own["speed"]["peak_bytes"] == 8 * own["speed"]["peak_bytes_1"] > 0
    assert entry["name"] == "Net as torch-export"


def test_inspect_says_what_an_export_is(shipped, capsys):
    from limbeck.cli import main

    for words in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["inspect", str(shipped("run", "onnx", "int8").parent), *words])
    text, facts = capsys.readouterr().out.split("{", 1)
    assert "Net as onnx, int8" in text
    assert "x: tensor(float) ['batch', 4]" in text
    assert "Before int8, checked against PyTorch on 40 real samples" in text
    assert json.loads("{" + facts)["quantize"] == "int8"


def test_evaluate_reads_options_strictly():
    for options, told in (
        ({"checks": ["speed"], "batchsize": 3}, "Did you mean 'batch_size'"),
        ({"checks": ["speed"], "batch_size": "many"}, "whole number from 1 on"),
        ({"checks": ["quality"], "repeats": 3}, "option of the check speed"),
    ):
        with pytest.raises(RecipeError, match=told):
            Run("run").evaluate(**options)


def test_evaluate_an_export_that_lies_elsewhere(tmp_path, shipped):
    from limbeck.measuring import evaluate

    moved = tmp_path / "given-away"
    shutil.copytree(shipped("run", "onnx").parent, moved)
    with pytest.raises(RecipeError, match="--data FILE"):
        evaluate(moved)
    entry = evaluate(moved / "student.onnx", data="tiny_data:paired")
    assert entry["metric"] == pytest.approx(Run("run").result["student"]["metric"])
    assert entry["retention"] is None
    (moved / "student.onnx").unlink()
    with pytest.raises(RecipeError, match="lacks student.onnx"):
        evaluate(moved, data="tiny_data:paired")
    with pytest.raises(RecipeError, match="no such folder or file"):
        evaluate(tmp_path / "nowhere")


def test_a_missing_modality_is_zero_or_not_given():
    entry = Run("both").evaluate(["missing"])
    student, batch = Student("both"), rows("both")
    target = batch["label"]
    student.model.eval()

    def accuracy(**columns):
        return float((student.model(**columns).argmax(1) == target).double().mean())

    assert entry["figures"]["without_a"] == pytest.approx(accuracy(x=batch["x"]))  # `a=None` is the network's own way
    assert entry["figures"]["without_x"] == pytest.approx(accuracy(x=torch.zeros_like(batch["x"]), a=batch["a"]))
    assert entry["metric"] == pytest.approx(accuracy(x=batch["x"], a=batch["a"]))


def test_keyword_inputs_keep_their_names_in_the_graph(shipped):
    session = onnxruntime.InferenceSession(shipped("both", "onnx"))
    assert [i.name for i in session.get_inputs()] == ["x", "a"]


def test_a_forward_that_writes_into_its_input_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"the student \(Writes\) writes into its input 'x'.*x = x \+ 1"):
        distill("kd.yaml", "student={model: 'more_models:Writes', view: x}", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload needs; what was committed lies in `files`."""

    files: dict[str, bytes] = {}
    calls: list[str] = []
    refuses = False
    address = ""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.calls.append(self.path)
        repository = f"{self.address}/lab/tiny"
        if self.refuses:
            self._say({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self._say({"url": repository, "id": "1"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self._say({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._say({"commitUrl": f"{repository}/commit/1", "commitOid": "1" * 40, "hookOutput": ""})
        else:
            self._say({"warnings": [], "errors": []})

    def do_GET(self):
        self.calls.append(self.path)
        self._say({"id": "lab/tiny", "sha": "1" * 40, "siblings": []})

    do_HEAD = do_GET  # noqa: N815

    def _say(self, answer, code=200):
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(monkeypatch):
    pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", Hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")
    Hub.files, Hub.calls, Hub.refuses = {}, [], False
    yield Hub
    server.shutdown()
    server.server_close()


def test_push_puts_the_exported_folder_on_the_hub(hub):
    words = [sys.executable, "-m", "limbeck", "export", "run", "--push", "lab/tiny"]
    environment = os.environ | {"HF_ENDPOINT": hub.address, "PYTHONPATH": str(Path(limbeck.__file__).parents[1])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = {p.name: p.read_bytes() for p in Path(done.stdout.strip()).parent.iterdir()}
    assert hub.files == there
    assert {"model.safetensors", "README.md", "labels.json", "limbeck.json", "export.json"} == there.keys()
    committed = next(i for i, call in enumerate(hub.calls) if "/api/models/lab/tiny/commit/main" in call)
    assert hub.calls.index("/api/repos/create") < committed


def test_a_refused_push_keeps_the_export_and_says_so(hub):
    hub.refuses = True
    with pytest.raises(RecipeError, match=r"lab/tiny could not be pushed to http://127.*hf auth login"):
        Run("run").export("safetensors", push="lab/tiny")
    assert Path("run/export/safetensors/model.safetensors").exists()
    assert not hub.files


def test_a_hub_that_is_not_there(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="could not be pushed"):
        Run("run").export("safetensors", push="lab/tiny")


def test_texts_are_no_input_of_a_graph():
    data = Run("run").recipe.build_data()
    student = Student(torch.nn.Identity(), view="words")

    class Texts:
        ids = ["0", "1"]

        def __len__(self):
            return 2

        def __getitems__(self, places):
            return {"words": ["a"] * len(places), "id": torch.tensor(places), "label": torch.tensor(places)}

    data.splits, data.columns = {"test": Texts()}, {"words": "text", "label": "label"}
    with pytest.raises(RecipeError, match="is shown 'words' as list, and a graph takes tensors"):
        exporting.export("onnx", Path("texts"), student=student, rows=Rows(data, Task("classification")))
