"""Ctrl-C and termination, turned into a stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from limbeck.engine.trainer import Stopped


class Interrupts:
    """Inside the block, the first Ctrl-C (or SIGTERM) asks for a stop at the next step boundary; the second one kills.

    A request that no step came after is passed on at the end of the block, so that none is lost.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.also: Callable[[], Stopped | None] = lambda: None
        self.folder: Path | None = None
        self._before: dict[int, Any] = {}

    def asked(self) -> Stopped | None:
        """Why to stop now, if anybody asked."""
        if self.signal is not None:
            name = "Ctrl-C" if self.signal == signal.SIGINT else "the request to terminate"
            return Stopped(
                "interrupted", f"stopped by {name} with everything saved. Go on with: limbeck resume {self.folder}"
            )
        return self.also()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.signal = number

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if problem == (None, None, None) and self.signal is not None:
            signal.raise_signal(self.signal)
