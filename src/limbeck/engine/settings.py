"""How to train: the `train` key of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from limbeck.schedules import Schedule, to_schedule


def _spec(value: Any) -> Any:
    return value.spec() if isinstance(value, Schedule) else value


def _factor(value: Any) -> Schedule:
    if isinstance(value, str) and value in ("cosine", "linear"):
        value = {"use": value, "start": 1.0, "end": 0.0}
    elif isinstance(value, str) and value == "constant":
        value = 1.0
    elif isinstance(value, dict) and value.get("use") in ("cosine", "linear"):
        value = {"start": 1.0, "end": 0.0} | value
    return to_schedule(value)


def _choice(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


Factor = Annotated[Schedule, BeforeValidator(_factor), PlainSerializer(_spec)]
Choice = Annotated[dict[str, Any], BeforeValidator(_choice)]


class TraineeSettings(BaseModel):
    """What one trainee may have of its own; None means as the student has it."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    lr: float | None = Field(None, gt=0)
    optimizer: Choice | None = None
    schedule: Factor | None = None
    warmup: float | None = Field(None, ge=0)
    weight_decay: float | None = Field(None, ge=0)
    clip: float | None = None


class TrainSettings(BaseModel):
    """Budget, optimiser and bookkeeping of a training.

    `batch_size` counts the samples of one update over all devices; `micro_batch` says how many of them go through the
    networks at once on one device (`auto`: all of them, or fewer when memory wants it), and never changes the result.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True)

    epochs: int | None = Field(10, ge=0)
    steps: int | None = Field(None, ge=0)
    batch_size: int = Field(64, ge=1)
    micro_batch: int | Literal["auto"] = "auto"
    lr: float = Field(1e-3, gt=0)
    optimizer: Choice = Field(default_factory=lambda: {"use": "adamw"})
    schedule: Factor = Field(default_factory=lambda: _factor("cosine"))
    warmup: float = Field(0.0, ge=0, description="below 1 a fraction of all steps, otherwise steps")
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null: none")
    trainees: dict[str, TraineeSettings] = Field(default_factory=dict)
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    shard: Literal["none", "fsdp"] = "none"
    gradient_checkpointing: bool = Field(
        False,
        description="compute the blocks of the student (and of the method's own networks) twice instead of keeping them",
    )
    compile: bool | str = Field(False, description="true, or the name of a torch.compile backend")
    workers: int = Field(0, ge=0)
    validate_every: int = Field(1, ge=1, description="epochs")
    select: Literal["best", "last"] = "best"
    patience: int | None = Field(
        None, ge=1, description="validations without a better one before stopping; null: never"
    )
    log_every: int = Field(10, ge=1, description="steps")
    log_gradients: bool = False
    save_every: float = Field(30.0, ge=0, description="seconds between checkpoints; 0: after every step")
    on_nonfinite: Literal["stop", "skip"] = "stop"

    def of(self, trainee: str, lr_ratio: float = 1.0) -> TrainSettings:
        """These settings with the trainee's own put over them; `lr_ratio`: its learning rate over `lr`, where it is given none."""
        own = self.trainees.get(trainee)
        given = {} if own is None else {key: getattr(own, key) for key in own.model_fields_set}
        said = {key: value for key, value in given.items() if value is not None}
        return self.model_copy(update={"lr": lr_ratio * self.lr} | said)
