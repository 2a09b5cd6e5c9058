"""What a rehearsal notes of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Piece:
    """Bytes of one update: its largest piece as it was measured."""

    rows: int
    batch_rows: int
    batch: int
    kept: int
    kept_half: int | None
    alive: int
    gradients: int
    whole: bool


@dataclass
class Seen:
    """A stage as it was rehearsed, and how much of it was left out."""

    name: str
    method: str
    control: bool
    steps: int
    epochs: int
    per_epoch: int
    batch_size: int
    train_rows: int
    patient: bool
    validate_every: int
    save_every: float
    micro_batch: int | str
    precision: str
    pieces: int = 1
    forced: int = 1
    optimizer: str = ""
    done: int = 0
    timed: list[tuple[float, int]] = field(default_factory=list)  # seconds and rows of a step
    last: tuple[float, int] = (0.0, 1)
    sections: dict[str, float] = field(default_factory=dict)
    validations: list[float] = field(default_factory=list)
    validation_s: float = 0.0
    validation_rows: tuple[int, int] = (0, 0)  # of the rehearsal, of the run
    saves: list[float] = field(default_factory=list)
    saved_between: int = 0
    extra_s: float = 0.0  # spent on measuring
    memory: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    updates: dict[str, Piece] = field(default_factory=dict)
    teaches: str = "frozen"
    compiled: bool = False
