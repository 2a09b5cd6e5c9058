"""The entry point: run a verb and turn what happens into a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from limbeck.cli import from_recipes, from_results  # noqa: F401  (their verbs join the application)
from limbeck.cli.shared import ANSWER_IS_NO, CANNOT_RUN, CODE, DONE, FAULT, INTERRUPTED, LIMIT, app, fail, not_main
from limbeck.errors import RecipeError


def main(arguments: list[str] | None = None) -> None:
    """The entry point: run a verb and turn what happens into a sentence and an exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = app(words, standalone_mode=False, prog_name="limbeck")
    except typer.Abort:
        code = INTERRUPTED
    except RecipeError as error:
        if debug:
            raise
        code = fail(str(error), CANNOT_RUN)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = _other(error, debug)
    _part()
    sys.exit(_told(code or DONE))


def _part() -> None:
    """Leave the other processes in order: torch takes one that ends without for a crash."""
    distributed = sys.modules.get("torch.distributed")
    if "RANK" in os.environ and distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()


def _told(code: int) -> int:
    """The exit code, which one of several processes leaves for the one that started them: to their launcher every code but 0 is a crash."""
    told = os.environ.get(CODE)
    if told is None:
        return code
    if not not_main():
        Path(told).write_text(str(code))
    return DONE if code in (ANSWER_IS_NO, LIMIT, INTERRUPTED) else code


def _other(error: Exception, debug: bool) -> int:
    from limbeck.engine.checkpoint import DISK, CheckpointError
    from limbeck.engine.stepper import NonFiniteError
    from limbeck.engine.trainer import Stopped
    from limbeck.teachers.asking import EndpointError

    if hasattr(error, "format_message"):  # words that fit no verb; typer carries click's exceptions under its own name
        context = getattr(error, "ctx", None)
        return fail(
            f"{error.format_message()} Help: {context.command_path if context else 'limbeck'} --help", CANNOT_RUN
        )
    if isinstance(error, Stopped):
        return fail(str(error), LIMIT if error.reason == "limit" else INTERRUPTED)
    if debug:
        raise error
    if isinstance(error, (NonFiniteError, FloatingPointError, CheckpointError, EndpointError)):
        return fail(str(error), FAULT)
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" ({error.filename})" if error.filename else ""
        return fail(
            f"A file could not be written{where}: {DISK[error.errno]}. The same command then goes on; nothing saved before is lost.",
            FAULT,
        )
    return fail(
        f"{type(error).__name__}: {error}\nThis is a fault of Limbeck or of code it called; --debug shows where.", FAULT
    )
