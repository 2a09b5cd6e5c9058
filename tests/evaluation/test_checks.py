"""Checks and their options by name, from a recipe and from words."""

import pytest

from limbeck.errors import RecipeError
from limbeck.evaluation.checks import CHECKS, LATER, ClipScore, Fid, Speed, check, chosen, spelled


def test_a_name_and_a_mapping_are_the_same_check():
    assert isinstance(check("fid"), Fid)
    made = check({"use": "fid", "samples": "10000", "classifier": "runs/judge"})
    assert (made.samples, made.classifier, made.layer) == (10000, "runs/judge", None)
    assert check(made) is made
    assert spelled([check("speed"), Speed(batch_size=1)]) == ["speed", {"use": "speed", "batch_size": 1, "repeats": 20}]
    assert [check(name).spec() for name in CHECKS] == list(CHECKS)


def test_words_belong_to_the_checks_that_have_such_an_option():
    found = chosen(["fid", {"use": "clip-score", "scale": 2.5}, "speed"], {"samples": "7", "repeats": 3})
    assert (found["fid"].samples, found["clip-score"].samples, found["clip-score"].scale) == (7, 7, 2.5)
    assert found["speed"].options() == {"batch_size": 32, "repeats": 3}
    assert list(chosen(["quality", {"use": "quality"}])) == ["quality"]


@pytest.mark.parametrize(
    ("choices", "options", "told"),
    [
        (["sped"], {}, "Did you mean 'speed'"),
        (["judge"], {}, "not there yet"),
        ([3], {}, "needed is a name"),
        ([{"samples": 3}], {}, "needed is a name"),
        ([{"use": "fid", "layers": 3}], {}, "Did you mean 'layer'"),
        (["fid"], {"sample": 3}, "Did you mean 'samples'"),
        (["quality"], {"samples": 3}, "option of the check fid and clip-score, which is not asked for: evaluate RUN fid samples=3"),
        (["fid"], {"samples": "many"}, "whole number from 1 on"),
        (["speed"], {"batch_size": True}, "whole number from 1 on"),
        (["clip-score"], {"scale": 0}, "greater than 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(choices, options, told):
    with pytest.raises(RecipeError, match=told):
        chosen(choices, options)


def test_nothing_is_both_there_and_to_come():
    assert not set(LATER) & CHECKS.keys()
    assert ClipScore().model == "openai/clip-vit-base-patch32"
