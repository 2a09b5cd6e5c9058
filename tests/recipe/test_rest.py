"""`control`, `evaluate`, `require`, `limit`, `cache`, `export`, `track`, `seed`."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe


def refused(*settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.of({}, *settings)
    return str(caught.value)


def test_the_defaults():
    found = Recipe.of({}).to_mapping()
    assert found["control"] == "train"
    assert found["evaluate"] == ["quality"]
    assert found["require"] == found["export"] == found["track"] == []
    assert set(found["limit"].values()) == {None}
    assert found["cache"] == {
        "signals": None,
        "top_k": None,
        "samples": None,
        "token_bytes": None,
        "dtype": "fp16",
        "views": 1,
        "splits": None,
    }
    assert found["seed"] == 0


def test_one_where_a_list_is_expected_is_a_list_of_one():
    recipe = Recipe.of({}, "evaluate=speed", "export=safetensors", "track=tensorboard", "require=retention >= 0.9")
    assert recipe.evaluate == ["speed"]
    assert recipe.evaluate_choices() == [{"use": "speed"}]
    assert recipe.export == ["safetensors"]
    assert recipe.track == ["tensorboard"]
    assert recipe.require == ["retention >= 0.9"]


def test_a_choice_with_use_is_the_name_and_stands_once():
    assert Recipe.of({"evaluate": [{"use": "quality"}, "quality", "missing"]}).evaluate == ["quality", "missing"]


def test_checks_have_options_and_are_spelled_with_all_of_them_where_one_is_not_as_usual():
    given = [{"use": "fid", "samples": 100}, "clip-score", {"use": "speed", "batch_size": 32}]
    recipe = Recipe.of({"evaluate": given}, "evaluate.clip-score.scale=2.5", "evaluate.fid.classifier=weights.pth")
    assert recipe.evaluate == [
        {"use": "fid", "samples": 100, "classifier": "weights.pth", "layer": None},
        {"use": "clip-score", "model": "openai/clip-vit-base-patch32", "scale": 2.5, "samples": None},
        "speed",
    ]
    assert recipe.evaluate_choices()[2] == {"use": "speed"}
    assert Recipe.of(recipe.to_mapping()) == recipe
    assert "unknown key 'sample' of fid. Did you mean 'samples'?" in refused("evaluate={use: fid, sample: 3}")
    assert "fid.samples: needed is a whole number from 1 on" in refused("evaluate={use: fid, samples: 0}")
    assert "clip-score.scale" in refused("evaluate={use: clip-score, scale: -1}")
    assert "unknown key 'samples' of quality. It has no options." in refused("evaluate={use: quality, samples: 3}")


@pytest.mark.parametrize("check", ["robustness", "search", "judge"])
def test_checks_of_later_are_said_to_be_of_later(check: str):
    assert refused(f"evaluate={check}") == (
        f"evaluate: the check '{check}' is not there yet. There is: quality, fidelity, calibration, speed, missing, writing, speculative, fid, clip-score."
    )


def test_unknown_names_are_refused_with_the_nearest():
    assert refused("evaluate=[quality, sped]") == "evaluate: unknown check 'sped'. Did you mean 'speed'?"
    assert refused("export=safetensor") == "export: unknown export 'safetensor'. Did you mean 'safetensors'?"
    assert refused("track=tensorbord") == "track: unknown tracker 'tensorbord'. Did you mean 'tensorboard'?"
    assert "not there yet" in refused("export=sentence-transformers")
    assert "'onnx' has no options yet" in refused("export={use: onnx, opset: 18}")
    assert "needed is a name" in refused("track=3")


def test_the_syntax_of_requirements_is_checked():
    assert "cannot read the requirement 'retention > high'" in refused("require=[ece < 0.1, retention > high]")
    assert refused("require=3").startswith("require.0: input should be a valid string")


@pytest.mark.parametrize("control", ["train", "start", "none", "runs/other"])
def test_controls(control: str):
    assert Recipe.of({}, f"control={control}").control == control


def test_a_run_as_control_is_its_folder_and_nothing_is_none(tmp_path: Path):
    class Run:
        folder = tmp_path

    assert Recipe.of({"control": Run()}).control == str(tmp_path)
    assert Recipe.of({"control": None}).control == "none"


def test_a_mistyped_control():
    assert (
        refused("control=trian")
        == "control: 'trian' is none of train, start, none, and no run folder. Did you mean 'train'?"
    )
    assert refused("control=true").startswith("control: input should be a valid string")


def test_limits_are_numbers_above_zero():
    assert Recipe.of({}, "limit.hours=12", "limit.memory_gb=0.5").limit.model_dump() == {
        "usd": None,
        "hours": 12.0,
        "memory_gb": 0.5,
        "disk_gb": None,
    }
    assert refused("limit.hours=0").startswith("limit.hours: input should be greater than 0")
    assert refused("limit.hour=1") == "unknown key 'limit.hour'. Did you mean 'hours'?"


def test_seeds_are_counted_from_zero():
    assert Recipe.of({}, "seed=7").seed == 7
    for wrong in ("-1", "1.5", "true", "x"):
        assert refused(f"seed={wrong}").startswith("seed: input should")


def test_what_to_store_of_the_teacher():
    cache = Recipe.of({}, "cache={signals: hint, top_k: 64}").cache
    assert (cache.signals, cache.top_k, cache.dtype) == (["hint"], 64, "fp16")
    assert refused("cache.top_k=0").startswith("cache.top_k: ")
