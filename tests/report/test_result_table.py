"""The table for terminals."""

import io

from rich.console import Console

from limbeck.report.terminal import Row, result_rows, table


def shown(found) -> str:
    file = io.StringIO()
    Console(file=file, width=100, color_system=None).print(found)
    return file.getvalue()


RESULT = {
    "name": "digits-1",
    "task": {"metric": "accuracy"},
    "student": {"name": "LeNet5", "metric": 0.93, "parameters": 61706, "bytes": 246824, "latency_ms": 0.61},
    "teacher": {"name": "Fusion", "metric": 0.96, "parameters": 900_000, "bytes": 3_600_000, "latency_ms": None},
    "control": None,
}


def test_rows_of_a_result():
    teacher, student = result_rows([RESULT])
    assert student == Row("student, LeNet5", 0.93, None, 61706, 0.61, 246824)
    assert teacher.reference
    assert teacher.latency_ms is None
    assert result_rows([RESULT, RESULT])[0].name == "digits-1: teacher, Fusion"


def test_every_figure_stands_in_its_column():
    lines = shown(table(result_rows([RESULT]), title="av-digits, 1 seed")).splitlines()
    assert lines[0].strip() == "av-digits, 1 seed"
    assert lines[1].split() == ["accuracy", "parameters", "latency", "size"]
    assert lines[2].split() == ["teacher,", "Fusion", "96.0", "%", "900", "000", "–", "3.60", "MB"]
    assert lines[3].split() == ["student,", "LeNet5", "93.0", "%", "61", "706", "0.610", "ms", "247", "kB"]


def test_mean_and_deviation_over_seeds():
    text = shown(table([Row("student, KD", 0.912, 0.0061), Row("alone", 0.9)]))
    assert "91.2 % ± 0.6" in text
    assert "90.0 %" in text
    assert "latency" not in text  # a column that nobody fills


def test_metrics_that_are_no_shares_and_names_that_look_like_markup():
    text = shown(table([Row("[red]x[/red] [/]", 1.234, measure="rmse")]))
    assert "root mean squared error" in " ".join(text.splitlines()[0].split() + text.splitlines()[1].split())
    assert "1.23" in text
    assert "[red]x[/red] [/]" in text
    assert "weighted F1" in shown(table([], metric="f1_weighted"))
