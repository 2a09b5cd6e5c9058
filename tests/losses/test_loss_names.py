import inspect

import pytest

from limbeck import losses
from limbeck.errors import RecipeError


def test_every_public_loss_has_a_name_in_recipes_with_hyphens_or_underscores():
    for name in set(losses.__all__) - {"find", "known"}:
        assert losses.find(name) is getattr(losses, name)
        assert losses.find(name.replace("_", "-")) is getattr(losses, name)


def test_student_comes_first_everywhere():
    for name in set(losses.__all__) - {"find", "known", "balance_kl", "balance_cv"}:
        parameters = list(inspect.signature(losses.find(name)).parameters.values())
        assert parameters[0].name == "student"
        assert parameters[1].name in ("teacher", "target")
        assert all(p.kind == p.KEYWORD_ONLY for p in parameters[2:])


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match=r"unknown loss 'revers-kl'\. Did you mean 'reverse-kl'\?"):
        losses.find("revers-kl")


def test_a_users_own_function_is_imported_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_losses.py").write_text(
        "def gap(student, teacher):\n    return (student - teacher).abs().mean(-1)\nlimit = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    assert losses.find("my_own_losses:gap").__name__ == "gap"
    with pytest.raises(RecipeError, match=r"Did you mean 'gap'\?"):
        losses.find("my_own_losses:gaps")
    with pytest.raises(RecipeError, match="is a int; needed is a function"):
        losses.find("my_own_losses:limit")
    with pytest.raises(RecipeError, match="no module nowhere_to_be_found"):
        losses.find("nowhere_to_be_found:gap")
