"""The pages on drafts and on bytes say what their files say; differences are paired by seed, and less may be better."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "benchmarks" / "evidence"
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))
try:
    import draft_tables
    from benchmarks.speculative import ARMS, FIGURES, method_of, shortened, summary
finally:
    del sys.path[:2]

VALUES = {"supervised": [0.5, 0.6, 0.7], "forward-kl": [0.6, 0.72, 0.78], "adaspec": [0.5, 0.5, 0.9]}
METHODS = {arm: arm for arm in VALUES}


def test_differences_are_paired_by_seed_and_the_best_arm_stands_first():
    arms = {arm["arm"]: arm for arm in summary(VALUES, ("supervised", "forward-kl"), METHODS)}
    assert list(arms) == ["forward-kl", "adaspec", "supervised"]
    told = arms["forward-kl"]["differences"]["supervised"]["seeds"]
    assert told["mean"] == pytest.approx(0.1)
    half = 4.302652729911275 * 0.02 / 3**0.5  # t(.975, 2) s / sqrt(3): the differences are .1, .12, .08
    assert (told["low"], told["high"]) == pytest.approx((0.1 - half, 0.1 + half))
    assert arms["supervised"]["differences"].keys() == {"forward-kl"}
    assert arms["adaspec"]["mean"] == pytest.approx(1.9 / 3)
    less = summary(VALUES, ("supervised",), METHODS, more_is_better=False)
    assert [arm["arm"] for arm in less] == ["supervised", "adaspec", "forward-kl"]


@pytest.mark.parametrize(("more", "word"), [(True, "better: forward-kl"), (False, "worse: forward-kl")])
def test_which_way_is_better_decides_the_words(more, word):
    problem = {"higher_is_better": more, "arms": summary(VALUES, ("supervised",), METHODS, more_is_better=more)}
    said = draft_tables.said(problem, "supervised")
    assert said == f"Against supervised, {word}; not told apart: adaspec."


def test_one_seed_tells_nothing_apart():
    one = {arm: values[:1] for arm, values in VALUES.items()}
    problem = {"higher_is_better": True, "arms": summary(one, ("supervised",), METHODS)}
    assert "better" not in draft_tables.said(problem, "supervised")


def test_arms_name_their_methods():
    from limbeck.methods import find

    assert {method_of(choice) for choice in ARMS.values()} == {"supervised", "forward-kl", "distillspec", "adaspec"}
    for choice in ARMS.values():
        find(method_of(choice))


def test_short_splits_are_the_first_documents(tmp_path):
    files = {}
    for split in ("train", "validation", "test"):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(20)))
    short = shortened(files, tmp_path)
    assert short["train"] == files["train"]
    counts = {split: Path(short[split]).read_text().splitlines() for split in ("validation", "test")}
    assert [len(lines) for lines in counts.values()] == [5, 10]
    assert counts["test"][9] == json.dumps({"text": "test 9"})


@pytest.mark.skipif(not (EVIDENCE / "speculative.json").exists(), reason="no such evidence")
def test_the_page_on_drafts_tells_every_arm_and_what_was_measured():
    found = json.loads((EVIDENCE / "speculative.json").read_text())
    page = draft_tables.drafts(found)
    assert {name.replace(" ", "_") for name in found["targets"]} == set(FIGURES)
    for problem in found["targets"].values():
        assert {arm["arm"] for arm in problem["arms"]} == set(ARMS)
        for arm in problem["arms"]:
            assert len(arm["values"]) == len(found["seeds"]) == 3
            assert f"{arm['mean']:.3f}" in page
    for arm in found["targets"]["acceptance"]["arms"]:
        assert all(0 < value < 1 for value in arm["values"])


@pytest.mark.skipif(not (EVIDENCE / "across-tokenizers.json").exists(), reason="no such evidence")
def test_the_page_on_bytes_tells_every_arm():
    found = json.loads((EVIDENCE / "across-tokenizers.json").read_text())
    page = draft_tables.across_tokenizers(found)
    ((_, problem),) = found["targets"].items()
    means = [arm["mean"] for arm in problem["arms"]]
    assert means == sorted(means)
    for arm in problem["arms"]:
        assert f"| {arm['arm']} | {arm['mean']:.3f}" in page
        assert len(arm["values"]) == len(found["seeds"])
