"""What a training run is asked to do: one frozen value that is validated when made."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from eagleray.models.tasks import TaskName

__all__ = ["Optimizer", "TrainPrecision", "TrainSpec"]

Optimizer = Literal["adamw", "sgd"]
TrainPrecision = Literal["float32", "bfloat16"]
Fraction = Annotated[float, Field(ge=0.0, le=0.9)]


class TrainSpec(BaseModel):
    """A training run.

    Attributes:
        data: Image-folder tree or CSV.
        name: Of the model that is registered.
        architecture: Name of a network.
        task: What the model answers.
        pretrained: Start from published weights.
        contract: Name of the image contract; None takes what the architecture was designed for.
        image_size: Side in pixels; None takes what the architecture was designed for.
        column: CSV column of the locations.
        label_column: CSV column of the labels.
        test_data: A test set of its own, in the same form as `data`.
        validation_fraction: Of the data, to choose the best epoch by.
        test_fraction: Of the data, held out to the end; not used beside `test_data`.
        epochs: Passes over the training part.
        batch_size: Images in a step, over all workers together.
        learning_rate: The highest of the one-cycle schedule.
        weight_decay: Decoupled for AdamW, L2 for SGD.
        optimizer: `adamw`, or `sgd` with Nesterov momentum 0.9.
        label_smoothing: Share of a target that is spread over all classes (multiclass).
        shift: Farthest random move of a training image, as a share of its side.
        flip: Mirror every second training image.
        precision: Of convolutions and matrix products.
        workers: Processes that train together.
        seed: Of the split, the weights, the order and the changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]
    architecture: str
    task: TaskName = "multiclass"
    pretrained: bool = False
    contract: str | None = None
    image_size: Annotated[int, Field(ge=1, le=8192)] | None = None
    column: str | None = None
    label_column: str | None = None
    test_data: str | None = None
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    optimizer: Optimizer = "adamw"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    flip: bool = False
    precision: TrainPrecision = "float32"
    workers: Annotated[int, Field(ge=1)] = 1
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size < self.workers:
            raise ValueError(
                f"batch_size {self.batch_size} is over all {self.workers} workers together, so it "
                "must be at least that"
            )
        if self.validation_fraction == 0:
            raise ValueError("validation_fraction must be above 0: the best epoch is chosen by it")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.label_smoothing and self.task != "multiclass":
            raise ValueError(f"label_smoothing is for multiclass, not for {self.task}")
        return self
