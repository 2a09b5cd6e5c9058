"""A run whose teacher is asked over the network: paid once, stopped at its price, gone on with, never paid again."""

import json
import sys
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.engine.trainer import Stopped
from limbeck.teachers.endpoint import EndpointError

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
from serving import served

RECIPE = """
task: classification
data: tiny_data:paired
teacher:
  endpoint: {address}
  model: tiny
  prompt: "What colour is {{x}}, which is {{label}}? One of {{labels}}."
  view: [x, label]
  labels: [red, green, blue]
  price: {{input: 10000, output: 50000}}
  tries: 1
student: {{model: "tiny_models:Net", args: {{inputs: 4}}, view: x}}
method: {{use: kd, temperature: 2}}
train: {{epochs: 2, batch_size: 16, lr: 1e-2, save_every: 0}}
control: none
seed: 3
"""
EACH = 0.2  # 10 tokens in, 2 out
ROWS = 96 + 30 + 40


def says(prompt):
    return ["red", "green", "blue"][int(prompt.split("which is ")[1][0])]


def test_it_stops_at_its_price_and_goes_on_without_paying_twice(project):
    with served(says=says) as fake:
        (project / "far.yaml").write_text(RECIPE.format(address=fake.address))
        with pytest.raises(Stopped, match=r"limit\.usd=16 is reached: 1\d\.\d+ US dollars are paid") as stopped:
            limbeck.distill("far.yaml", "limit.usd=16", out="runs/one")
        assert stopped.value.reason == "limit"
        folder = project / "runs" / "one"
        paid = len(fake.asked)
        assert 16 / EACH <= paid <= 16 / EACH + 16  # the limit, and one batch that was under way
        lines = [json.loads(line) for line in (folder / "answers.jsonl").open()]
        assert len(lines) == paid == len({line["key"] for line in lines})

        with pytest.raises(Stopped):  # nothing has changed, so nothing more is paid
            limbeck.distill("far.yaml", "limit.usd=16", out="runs/one")
        assert len(fake.asked) == paid

        run = limbeck.Run(folder).resume("limit.usd=1000")
        assert len(fake.asked) == ROWS  # every row of every split once, in both epochs and when all is measured
        assert run.result["cost"]["usd"] == pytest.approx(ROWS * EACH)
        assert run.result["teacher"]["metric"] == 1.0

        again = limbeck.distill("far.yaml", out="runs/two")  # a second run asks nobody
        assert len(fake.asked) == ROWS
        assert again.result["cost"]["usd"] == 0
        for name, weight in run.student.model.state_dict().items():
            assert torch.equal(weight, again.student.model.state_dict()[name])
        kept = next((project / "runs").glob("answers-tiny-*.jsonl"))
        assert kept.samefile(folder / "answers.jsonl")
        assert kept.samefile(project / "runs" / "two" / "answers.jsonl")


def test_a_server_that_dies_costs_nothing_that_was_paid(project):
    with served(says=says) as fake:
        (project / "far.yaml").write_text(RECIPE.format(address=fake.address))
        seen, complete = [], fake.answer

        def dies(path, body):
            seen.append(body)
            return (500, {"error": {"message": "out of memory"}}) if 70 < len(seen) < 100 else complete(path, body)

        fake.answer = dies
        with pytest.raises(
            EndpointError, match=r"status 500: out of memory\. What it answered is kept; the same command goes on"
        ):
            limbeck.distill("far.yaml", out="runs/one")
        kept = len((project / "runs" / "one" / "answers.jsonl").read_text().splitlines())
        assert kept == len(fake.asked)
        seen[:] = [None] * 100
        limbeck.distill("far.yaml", out="runs/one")
        assert len(fake.asked) == ROWS


def test_a_cache_a_plan_and_a_run_pay_once(project):
    with served(says=says) as fake:
        (project / "far.yaml").write_text(RECIPE.format(address=fake.address))
        limbeck.cache("far.yaml", out="kept")
        assert len(fake.asked) == ROWS
        limbeck.plan("far.yaml")
        limbeck.distill("far.yaml", out="runs/one")
        run = limbeck.distill("far.yaml", out="runs/two", teacher="kept")
        assert len(fake.asked) == ROWS
        assert run.result["teacher"]["metric"] == 1.0
        assert not (project / "runs" / "far").exists()
        with pytest.raises(Stopped, match=r"limit\.usd=1 is reached"):
            limbeck.cache("far.yaml", "limit.usd=1", "teacher.prompt='Now {x}, which is {label}?'", out="runs/other")
        assert len(fake.asked) < ROWS + 40


def test_the_command_line_says_it_in_a_sentence(project, cli):
    with served(troubles=[500] * 200) as fake:
        (project / "far.yaml").write_text(RECIPE.format(address=fake.address))
        code, _, error = cli("distill", "far.yaml", "--out", "runs/one")
    assert code == 1
    assert "fails with status 500: trouble 500." in error
    assert "fault of Limbeck" not in error
