"""What the entry point makes of errors: their own sentence where they have one, and an exit code."""

import pytest

from limbeck.cli import entry
from limbeck.cli.shared import CANNOT_RUN, FAULT
from limbeck.errors import RecipeError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecipeError("needed is a folder."), CANNOT_RUN, "needed is a folder."),
        (FloatingPointError("sampling step 2 of 4 is not finite."), FAULT, "sampling step 2 of 4 is not finite."),
        (KeyError("x"), FAULT, "fault of Limbeck"),
    ],
)
def test_an_error_is_a_sentence_and_a_code(monkeypatch, capsys, error, code, said):
    def verb(*_args, **_options):
        raise error

    monkeypatch.setattr(entry, "app", verb)
    with pytest.raises(SystemExit) as exit_:
        entry.main(["distill"])
    assert exit_.value.code == code
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown
    assert ("fault of Limbeck" in shown) == isinstance(error, KeyError)
