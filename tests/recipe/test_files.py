"""Where recipes lie, and which version wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe, files


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "version", lambda: "0.5.0")


def run_folder(path: Path, text: str = "seed: 3\n") -> Path:
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(text)
    return path


def refused(source: str | Path) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(source)
    return str(caught.value)


def test_a_file_a_run_folder_and_a_name(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    assert Recipe.load(tmp_path / "mine.yaml").seed == 3
    assert Recipe.load(run_folder(tmp_path / "runs" / "digits-12")).seed == 3
    assert Recipe.load(str(tmp_path / "mine.yaml"), "seed=4").seed == 4
    assert Recipe.load("digits-kd").student is not None


def test_runs_are_called_after_their_recipe(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    run_folder(tmp_path / "digits-12")
    names = [Recipe.load(source).name for source in (tmp_path / "mine.yaml", tmp_path / "digits-12", "digits-kd")]
    assert names == ["mine", "digits", "digits-kd"]
    assert Recipe.load(tmp_path / "mine.yaml").with_settings("seed=4").name == "mine"
    assert Recipe.of({"method": "kd+limbeck.losses:mse"}).name == "kd+mse"


def test_a_folder_beside_does_not_hide_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-kd").mkdir()
    assert Recipe.load("digits-kd").name == "digits-kd"


def test_a_name_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'digits-kd'?" in refused("digit-kd")
    (tmp_path / "fusion.yaml").write_text("seed: 1\n")
    assert "Did you mean 'fusion.yaml'?" in refused("fusoin.yaml")
    (tmp_path / "empty").mkdir()
    assert "is a folder without recipe.yaml" in refused("empty")


def test_files_that_are_no_recipe(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("- a\n")
    assert "needed is a mapping of keys" in refused(file)
    file.write_text("seed: 1\nseed: 2\n")
    assert refused(file) == f"{file} line 2: the key 'seed' stands twice."
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(file)


def test_message_9_a_newer_version(tmp_path: Path):
    run = run_folder(tmp_path / "runs" / "old", "limbeck: 9.9.0\nseed: 3\n")
    advice = f"pip install limbeck==9.9.0, or take its student: limbeck export {run}"
    assert (
        refused(run)
        == f"{run} was written by limbeck 9.9.0, whose recipe this version cannot read (this is 0.5.0). {advice}"
    )
    file = tmp_path / "x.yaml"
    file.write_text("limbeck: '9.9.0'\n")
    assert refused(file).endswith("(this is 0.5.0). pip install limbeck==9.9.0")
    with pytest.raises(RecipeError, match=r"written by limbeck 9\.9\.0"):
        Recipe.of({"limbeck": "9.9.0"})


def test_message_9_a_key_of_an_older_version(tmp_path: Path):
    run = run_folder(tmp_path / "runs" / "old", "limbeck: 0.3.1\ntrain: {kd_weight: 3}\n")
    assert refused(run) == (
        f"{run} was written by limbeck 0.3.1, whose recipe this version cannot read (key 'train.kd_weight'). "
        f"pip install limbeck==0.3.1, or take its student: limbeck export {run}"
    )


def test_a_mistake_in_a_file_of_this_version_is_only_a_mistake(tmp_path: Path):
    file = tmp_path / "x.yaml"
    for head in ("limbeck: 0.5.0\n", ""):
        file.write_text(f"{head}trian: {{}}\n")
        assert refused(file) == "unknown key 'trian'. Did you mean 'train'?"


@pytest.mark.parametrize("written", ["0.5.0", "0.4", "0.4.9", "unknown", "0.5"])
def test_files_of_this_and_older_versions_are_read(tmp_path: Path, written: str):
    file = tmp_path / "x.yaml"
    file.write_text(f"limbeck: {written}\nseed: 3\n")
    assert Recipe.load(file).seed == 3


@pytest.mark.parametrize("written", ["0.5.1", "0.10.0", "1.0"])
def test_versions_are_numbers_not_text(tmp_path: Path, written: str):
    file = tmp_path / "x.yaml"
    file.write_text(f"limbeck: {written}\n")
    assert "was written by limbeck" in refused(file)


def test_every_recipe_that_comes_with_the_package_resolves_and_builds():
    names = files.named()
    assert {"chat", "digits-kd", "digits-mst", "few-step"} <= names.keys()
    for name in names:
        recipe = Recipe.load(name)
        if name in ("chat", "few-step"):  # teacher, student and data are the user's words
            recipe = Recipe.load(name, "student=my_models:Small", "teacher=my_models:Small", "data=mine")
            assert recipe.build_plan() is not None
            assert Recipe.of(recipe.to_mapping()) == recipe
            continue
        assert recipe.build_student().parameters_count() > 0
        assert recipe.build_teacher() is not None
        assert recipe.build_plan() is not None
        assert Recipe.of(recipe.to_mapping()) == recipe
