"""The tables: what is in them, and that no cell breaks their layout."""

from __future__ import annotations

import io
import re

from rich.console import Console

from limbeck.comparing import tables


def row(arm, mean, sd=None, **more):
    plain = {"arm": arm, "method": arm, "mean": mean, "sd": sd, "planned": 2, "finished": 2, "failed": [], "tuned": {}}
    cost = {"seconds": 61.0, "steps": 1200, "trials": 0, "trial_seconds": None}
    return plain | {"differences": {}, "rank": 1.0, "cost": cost} | more


def interval(mean, low, high):
    return {"mean": mean, "low": low, "high": high, "level": 0.95, "how": "", "what": ""}


def result(*rows, ranks=None, names=("",), metric="accuracy"):
    problems = [
        {"name": n, "metric": metric, "higher_is_better": True, "split": "test", "arms": list(rows)} for n in names
    ]
    return {"problems": problems, "ranks": ranks}


GAP = {"supervised": {"arm": "supervised", "seeds": interval(0.02, 0.01, 0.03), "samples": interval(0.02, None, None)}}


def test_what_a_row_says():
    text = tables.markdown(result(row("supervised", 0.5), row("kd", 0.52, 0.011, differences=GAP)))
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    assert lines[0] == [
        *("", "accuracy", "seeds", "minus supervised, 95 % over seeds", "minus supervised, 95 % over samples"),
        *("rank", "time", "steps"),
    ]
    assert lines[2][:5] == ["supervised", "50.0 %", "2", "", ""]
    assert lines[3] == ["kd", "52.0 % ± 1.1", "2", "+2.0 [+1.0, +3.0]", "+2.0", "1", "1 min 1 s", "1 200"]
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert "percentage points" in text


def test_failures_are_said_once_for_each_reason():
    failed = [{"run": "x-0", "reason": "no | memory\nleft"}, {"run": "x-1", "reason": "no | memory\nleft"}]
    shown = result(row("a|b", None, finished=0, failed=failed))
    text = tables.markdown(shown)
    assert "x-0, x-1 failed: no | memory left" in text
    assert r"| a\|b | failed   | 0 of 2 |" in text
    assert "% x-0, x-1 failed: no | memory left" in tables.latex(shown).splitlines()
    assert "no | memory left" in " ".join(tables.section(shown, "").split())


def test_latex_is_escaped_and_balanced():
    shown = result(
        row(r"a_b&c%d#e{f}$g\h~i^j", 0.5, 0.1, differences=GAP), names=("p_1", "q"), ranks=[{"arm": "a_b", "rank": 1.5}]
    )
    text = tables.latex(shown)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert r"a\_b\&c\%d\#e\{f\}\$g\textbackslash{}h\textasciitilde{}i\textasciicircum{}j" in text
    for line in text.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (1, 7)
            assert not re.search(r"(?<!\\)[%#]", line)
    assert text.isascii() or not [s for s in re.sub("(?m)^%.*$", "", text) if not s.isascii()]


def test_the_section_of_the_report_is_escaped():
    text = tables.section(result(row("<script>", 0.5, tuned={"x": "<b>"})), "")
    assert "<script>" not in text
    assert "<b>" not in text
    assert text.startswith('<section id="arms">')


def test_one_section_per_problem_with_the_ranks():
    shown = result(row("kd", 0.5), names=("one", "two"), ranks=[{"arm": "kd", "rank": 1.0}])
    text = tables.section(shown, "two")
    assert text.count("<table") == 2
    assert "mean rank over 2 problems" in text


def test_the_terminal_shows_the_same():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(
        tables.terminal(result(row("supervised", 0.5), row("kd", 0.52, 0.011, differences=GAP), names=("one",)))
    )
    text = console.export_text()
    for said in ("one", "52.0 % ± 1.1", "+2.0 [+1.0, +3.0]", "1 min 1 s"):
        assert said in text


def test_nothing_measured_yet_is_a_table_too():
    waiting = row(
        "kd", None, finished=0, rank=None, cost={"seconds": None, "steps": None, "trials": 4, "trial_seconds": None}
    )
    text = tables.markdown(result(waiting, metric=None))
    assert "0 of 2" in text
    assert "failed" not in text
