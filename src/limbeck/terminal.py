"""A run in the terminal: a bar per stage, the loss, the last validation; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from limbeck.method import Progress


class _Bars(Bars):
    """Progress bars with a table standing above them."""

    above: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The table, then the bars."""
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()


class Terminal:
    """Shows a run as it goes. A context manager: the live display ends with the block.

    Args:
        console: where to write (standard error by default, so that `--json` has standard output to itself).
        quiet: show nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False):
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self.prefix = ""
        self.bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self._task: TaskID | None = None
        self._name, self._validated = "", ""
        self._shown = 0.0

    def __enter__(self) -> Terminal:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def say(self, sentence: str) -> None:
        """A sentence above the bar."""
        if not self.quiet:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def stage(self, name: str, steps: int, done: int) -> None:
        """A stage begins, or goes on after `done` steps."""
        self._name, self._validated = f"{self.prefix}{name}", ""
        if self._task is not None:
            self.bars.remove_task(self._task)
        self._task = self.bars.add_task(self._name, total=steps, completed=done, told="")
        if not self.live and not self.quiet:
            self.say(f"{self._name}: {steps - done} steps" + (f" (of {steps}, going on)" if done else ""))

    def step(self, progress: Progress, loss: float, samples_per_s: float) -> None:
        """A step was made."""
        now = time.monotonic()
        if self._task is None or not self.live or (now - self._shown < 0.1 and progress.step + 1 < progress.steps):
            return
        self._shown = now
        told = f"loss {loss:.3f}{self._validated} · {samples_per_s:,.0f} samples/s"
        self.bars.update(self._task, completed=progress.step + 1, total=progress.steps, told=told)

    def validation(self, progress: Progress, loss: float, metric: float | None) -> None:
        """A validation was made."""
        self._validated = f" · validation {metric:.3f}" if metric is not None else f" · validation loss {loss:.3f}"
        now = time.monotonic()
        if not self.live and not self.quiet and (now - self._shown > 5 or progress.step == progress.steps):
            self._shown = now
            self.say(
                f"  epoch {progress.epoch + 1} of {progress.epochs}: validation loss {loss:.4f}"
                + (f", metric {metric:.4f}" if metric is not None else "")
            )

    def table(self, table: RenderableType, *, last: bool) -> None:
        """Show a table above the bar, in place of the one before; the last one stays."""
        if last or not self.live:
            self.bars.above = None
            if not self.quiet:
                self.console.print(table)
        else:
            self.bars.above = table

    def muted(self) -> Muted:
        """The same display without the sentences of single runs."""
        return Muted(self)


class Muted:
    """Shows the bars of a run that is one of many, and keeps its sentences for its own folder."""

    def __init__(self, terminal: Terminal):
        self.terminal = terminal
        self.stage, self.step, self.validation = (
            terminal.stage,
            terminal.step,
            self._quiet if not terminal.live else terminal.validation,
        )

    def say(self, sentence: str) -> None:
        """The run's folder keeps it."""

    def _quiet(self, progress: Progress, loss: float, metric: float | None) -> None:
        """Lines per validation would bury the table where there is no live display."""
