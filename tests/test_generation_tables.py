"""The page on generators says what its files say: pairs by seed, which way is better, failures, what papers claim."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))
try:
    import comparison_tables
    import generation_tables
    from benchmarks.generation import ARMS, BASES, compared, told
finally:
    del sys.path[:2]


def arm(name, n, values, **more):
    """An arm as the evidence has it, the metric's values by seed."""
    runs = {
        seed: {"steps": 100, "cpu_seconds": 1.0, "figures": {str(n): {"frechet": v, "recall": 1 - v}}}
        for seed, v in enumerate(values)
    }
    return {"arm": name, "method": name, "evaluations": n, "lr": 1e-3} | told(runs, str(n)) | more


def found(*arms):
    made = compared(list(arms), [0, 1, 2], "frechet")
    references = {"teacher, 1 steps": [{"frechet": 0.9}] * 3, "training data": [{"frechet": 0.1}]}
    facts = {"dataset": "d", "notes": "nothing", "metric": "frechet", "higher_is_better": False, "kind": "generation"}
    return facts | {
        "cpu_seconds": 1.0,
        "seeds": [0, 1, 2],
        "bases": BASES,
        "references": references,
        "arms": made,
        "command": "c",
    }


FOUND = found(
    arm("endpoints", 1, [0.5, 0.6, 0.7]),
    arm("dmd2", 1, [0.4, 0.48, 0.62]),
    arm("dmd2", 4, [0.2, 0.2, 0.2]),
    arm("consistency", 4, [0.3, 0.32, 0.31]),
)


def test_differences_are_paired_by_seed_at_the_same_number_of_steps():
    by = {(a["arm"], a["evaluations"]): a["differences"] for a in FOUND["arms"]}
    difference = by["dmd2", 1]["endpoints"]["seeds"]
    assert difference["mean"] == pytest.approx(-0.1)
    half = 4.302652729911275 * 0.02 / 3**0.5  # t(.975, 2) s / sqrt(3): the differences are -.1, -.12, -.08
    assert (difference["low"], difference["high"]) == pytest.approx((-0.1 - half, -0.1 + half))
    assert by["dmd2", 4].keys() == {"consistency"}
    assert by["endpoints", 1] == {}


def test_a_set_with_more_time_has_the_figures_of_less_beside_its_own():
    longer = found(arm("dmd2", 1, [0.1, 0.1, 0.1]), arm("sid", 1, [0.3, 0.3, 0.3])) | {
        "longer": "d",
        "cpu_seconds": 4.0,
    }
    first, second = generation_tables.sections([longer | {"dataset": "d-longer"}, FOUND])
    assert first == generation_tables.section(FOUND)
    assert "| method | 1 step | 1 step in 1 s | recall |" in second
    assert "| dmd2 | 0.100 ± 0.000 | 0.500 ± 0.111 | 0.90 | " in second
    assert "| sid | 0.300 ± 0.000 |  | 0.70 |" in second


def test_less_is_better_in_the_sentences_and_what_the_papers_say_is_looked_at():
    page = generation_tables.section(FOUND)
    assert "Against endpoints with 1 step, better: dmd2." in page
    assert "Against consistency with 4 steps, better: dmd2." in page
    assert "| DMD2: distribution matching is better than regression to the flow's ends | yes |" in page
    assert "teacher, 1 step 0.900" in page
    rows = [line for line in page.splitlines() if line.startswith(("| dmd2 ", "| endpoints", "| consistency"))]
    assert [row.split(" | ")[0] for row in rows] == ["| dmd2", "| endpoints", "| consistency"]


def test_recall_is_better_when_there_is_more():
    one = found(arm("sim", 1, [0.3, 0.31, 0.3]), arm("dmd2", 1, [0.6, 0.6, 0.62]))
    assert "| SIM: more modes are kept than by reverse KL (recall) | yes |" in generation_tables.section(one)


def test_what_failed_is_said():
    runs = {0: {"steps": 9, "figures": {}, "failed": "not finite"}, 1: {"steps": 9, "figures": {}, "failed": "no"}}
    failed = {"arm": "sid", "method": "sid", "evaluations": 1, "lr": 1.0} | told(runs, "1")
    page = generation_tables.section(found(arm("endpoints", 1, [0.5, 0.6, 0.7]), failed))
    assert "| sid | failed |" in page


def test_cards_know_it_with_less_as_better():
    (entry,) = [e for e in comparison_tables.by_method([FOUND])["dmd2"] if e["than"] == "endpoints"]
    assert entry["data"] == "d, 1 step"
    assert entry["mean"] == pytest.approx(0.1)
    assert entry["seeds"] == 3


def test_arms_name_methods_that_there_are():
    from limbeck.methods import all_methods

    assert {a.method["use"] for a in ARMS.values()} <= all_methods().keys()
    names = ARMS.keys() | {f"teacher, {n} steps" for n in (1, 2, 4, 20, 100)}
    assert all({one, other} <= names for _, one, other, _, _ in generation_tables.CLAIMS)


def test_what_is_beyond_few_steps_is_told_against_its_first_row():
    values = {"a": [1.0, 1.0], "b": [1.5, 1.7]}
    against = {"b": {"mean": 0.6, "low": 0.1, "high": 1.1}}
    facts = {
        "command": "c",
        "merging": {"frechet": values, "against": against},
        "rewarded": {"ink": values, "frechet": values, "against": {"ink": against, "frechet": {}}},
        "begun": {"recall": values, "against": {"recall": against}},
        "featured": {"steps": 5, "probe": values, "frechet": values, "against": {"probe": {}, "frechet": against}},
    }
    page = generation_tables.further(facts)
    assert "| b | 1.600 ± 0.141 | +0.600 (+0.100 to +1.100) |" in page
    assert "| b | 1.600 ± 0.141 |  | 1.600 ± 0.141 | +0.600 (+0.100 to +1.100) |" in page
    assert "**DMM.**" not in generation_tables.further({"command": "c", "begun": facts["begun"]})


def test_fewer_seeds_than_the_others_are_said():
    page = generation_tables.section(found(arm("endpoints", 1, [0.5, 0.6, 0.7]), arm("dmd2", 1, [0.4])))
    assert "| dmd2 | 0.400 (1 of 3 seeds) |" in page
