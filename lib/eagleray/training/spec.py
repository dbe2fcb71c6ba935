"""What a training run is asked to do: one frozen value, one YAML file, and a flag for each field.

    spec = TrainSpec(data="flowers/", name="flowers", architecture="resnet18")
    spec.to_yaml()                          as it is stored with the run
    read_spec("flowers.yaml", {"epochs": 5})

Fields are listed in the order of the flow: data, model, optimisation, augmentation, run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.names import ModelName
from eagleray.imaging.contract import first_fault
from eagleray.io import storage
from eagleray.tasks import LossOptions, task_class

__all__ = [
    "Optimizer",
    "Schedule",
    "Thaw",
    "TrainPrecision",
    "TrainSpec",
    "make_spec",
    "read_fields",
    "read_spec",
]

Optimizer = Literal["adamw", "adam", "sgd"]
Schedule = Literal["one_cycle", "cosine", "linear", "step", "constant"]
TrainPrecision = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "gpu"]
Sharding = Literal["replicated", "sharded"]
Fraction = Annotated[float, Field(ge=0.0, le=0.9)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

_MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
_WORKERS = re.compile(r"([1-9]\d*)(?:\.\.([1-9]\d*))?")
_THAW = re.compile(r"(\d+):(\d+|all)")

DATA, MODEL, OPTIMISATION = "Data", "Model", "Optimisation"
AUGMENTATION, RUN = "Augmentation", "Run"


def _field(default: Any, panel: str, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


class Thaw(BaseModel):
    """One step of an unfreezing: after `epoch` epochs `stages` more stages learn, the last first.

    Attributes:
        epoch: Epochs finished.
        stages: How many; None for all that are still frozen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    stages: int | None


class TrainSpec(BaseModel):
    """A training run. Every field has its description beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str = _field(..., DATA, "Folder with a folder for each class, or a table of images.")
    task: str = _field(
        "multiclass", DATA, "binary, multiclass, multilabel, regression, or a task of an extension."
    )
    column: str | None = _field(None, DATA, "Column of the locations.")
    label_column: str | None = _field(None, DATA, "Column of the labels.")
    label_columns: tuple[str, ...] = _field((), DATA, "Columns of 0 and 1, one for each label.")
    separator: str | None = _field(None, DATA, "Between several labels in one column.")
    group_column: str | None = _field(
        None, DATA, "Column whose equal values stay in one part, as near-copies must."
    )
    attributes: tuple[str, ...] = _field(
        (), DATA, "Columns that the network sees beside the image: numbers, or categories."
    )
    test_data: str | None = _field(None, DATA, "A test set of its own, in the form of the data.")
    split: str | None = _field(None, DATA, "Split file to use again, instead of a new split.")
    validation_fraction: Fraction = _field(0.1, DATA, "Of the data, to choose the best epoch by.")
    test_fraction: Fraction = _field(0.2, DATA, "Of the data, held out to the end.")
    folds: int = _field(0, DATA, "Cross-validate with so many folds; register nothing.", ge=0)
    max_unreadable: Share = _field(0.05, DATA, "Largest share of images that cannot be decoded.")

    name: ModelName = _field(..., MODEL, "Of the model that is registered.")
    architecture: str | None = _field(
        None, MODEL, "See `eagleray models architectures`; default: resnet18, or the parent's."
    )
    pretrained: bool = _field(False, MODEL, "Start from published weights.")
    parent: str | None = _field(
        None, MODEL, "Model to start from: its architecture, contract and weights, with a new head."
    )
    contract: str | None = _field(None, MODEL, "Name of the image contract.")
    image_size: int | None = _field(None, MODEL, "Side in pixels.", ge=1, le=8192)
    dropout: float = _field(0.0, MODEL, "Share of features dropped before the head.", ge=0, lt=1)
    freeze: int | str = _field(
        0,
        MODEL,
        "First stages of the network that do not learn, or `backbone` for all but the head.",
    )
    unfreeze: tuple[str, ...] = _field(
        (), MODEL, "Stages that learn later, as EPOCH:STAGES or EPOCH:all."
    )

    epochs: int = _field(20, OPTIMISATION, "Passes over the training part.", ge=1)
    batch_size: int = _field(64, OPTIMISATION, "Images of a step, over all workers.", ge=1)
    accumulate: int = _field(
        1, OPTIMISATION, "Parts that a step's images are worked through in, to save memory.", ge=1
    )
    optimizer: Optimizer = _field("adamw", OPTIMISATION, "How weights move.")
    learning_rate: float = _field(2e-3, OPTIMISATION, "Highest of the schedule.", gt=0)
    schedule: Schedule = _field("one_cycle", OPTIMISATION, "How the learning rate changes.")
    warmup: Share = _field(0.2, OPTIMISATION, "Share of the steps that it rises in.")
    layer_decay: float = _field(
        1.0, OPTIMISATION, "Learning rate of each stage as a share of the next one's.", gt=0, le=1
    )
    momentum: float = _field(0.9, OPTIMISATION, "Of SGD (Nesterov).", ge=0, lt=1)
    weight_decay: float = _field(1e-4, OPTIMISATION, "Decoupled for AdamW, else L2.", ge=0)
    loss: str = _field(
        "auto", OPTIMISATION, "cross_entropy, bce, mse, focal, …; auto: the default of the task."
    )
    focal_gamma: float = _field(2.0, OPTIMISATION, "Of the focal loss.", ge=0)
    label_smoothing: float = _field(0.0, OPTIMISATION, "Share spread over all classes.", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = _field(
        "none", OPTIMISATION, "balanced: rare classes count as much as common ones."
    )
    clip_norm: float = _field(0.0, OPTIMISATION, "Longest gradient; 0: any.", ge=0)
    ema: float = _field(0.0, OPTIMISATION, "Decay of the average of weights; 0: none.", ge=0, lt=1)
    patience: int = _field(
        0, OPTIMISATION, "Epochs without a better one before training stops; 0: never.", ge=0
    )
    calibrate: bool = _field(
        True, OPTIMISATION, "Fit a temperature, so that probabilities are honest (classifiers)."
    )
    thresholds: Literal["half", "f1"] = _field(
        "half", OPTIMISATION, "f1: chosen on the validation part for the best F1 of each label."
    )
    precision: TrainPrecision = _field("float32", OPTIMISATION, "Of convolutions and products.")

    shift: float = _field(
        0.0, AUGMENTATION, "Farthest move of an image, as a share of its side.", ge=0, le=0.5
    )
    flip: bool = _field(False, AUGMENTATION, "Mirror every second image.")
    vertical_flip: bool = _field(False, AUGMENTATION, "Turn every second image upside down.")
    crop: float = _field(
        1.0, AUGMENTATION, "Smallest share of the area of a random crop; 1: no crops.", gt=0, le=1
    )
    color: float = _field(
        0.0, AUGMENTATION, "Strength of changes of brightness, contrast, saturation.", ge=0, le=1
    )
    randaugment: int = _field(0, AUGMENTATION, "Magnitude of RandAugment; 0: none.", ge=0, le=30)
    erasing: Share = _field(0.0, AUGMENTATION, "Share of images that lose a rectangle.")
    mixup: float = _field(0.0, AUGMENTATION, "Alpha of mixup; 0: none.", ge=0)
    cutmix: float = _field(0.0, AUGMENTATION, "Alpha of cutmix; 0: none.", ge=0)

    workers: int | str = _field(
        1, RUN, "Processes that train together; as in 2..8, how many there are to be had."
    )
    device: Device = _field("auto", RUN, "What to train on.")
    sharding: Sharding = _field(
        "replicated", RUN, "sharded: workers share weights and state (FSDP), for large models."
    )
    checkpoint_steps: int = _field(
        0, RUN, "Steps between checkpoints; 0: at the end of each epoch.", ge=0
    )
    keep_checkpoints: int = _field(2, RUN, "Newest checkpoints that are kept.", ge=1)
    seed: int = _field(0, RUN, "Of all that is random.", ge=0)

    @field_validator("label_columns", "attributes", "unfreeze", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for check in (self._check_data, self._check_model, self._check_optimisation):
            check()
        if self.batch_size < self.max_workers * self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} is over all {self.max_workers} workers and "
                f"{self.accumulate} parts together, so it must be at least "
                f"{self.max_workers * self.accumulate}"
            )
        return self

    def _check_data(self) -> None:
        if self.split is None:
            if self.validation_fraction == 0:
                raise ValueError(
                    "validation_fraction must be above 0: the best epoch is chosen by it"
                )
            if self.validation_fraction + self.test_fraction >= 1:
                raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.label_columns and self.label_column:
            raise ValueError("label_column and label_columns exclude each other; name one of them")
        twice = [name for name in self.attributes if self.attributes.count(name) > 1]
        if twice:
            raise ValueError(f"attributes must name each column once, and names {twice[0]} twice")
        if self.folds == 1:
            raise ValueError("folds must be 2 or more, or 0 for none")

    def _check_model(self) -> None:
        if self.parent is not None and self.pretrained:
            raise ValueError("parent and pretrained exclude each other: both say where to start")
        if self.freeze != "backbone" and not str(self.freeze).isdecimal():
            raise ValueError("freeze must be a number of stages from 0 on, or backbone")
        if self.unfreeze and self.frozen_stages == 0:
            raise ValueError("unfreeze has nothing to do: freeze says which stages are frozen")
        if self.frozen_stages != 0 and not (self.pretrained or self.parent):
            raise ValueError(
                "freeze keeps random weights as they are; name a parent, or pretrained weights"
            )
        if self.sharding == "sharded" and (self.ema or self.freeze):
            raise ValueError("sharding sharded goes with neither ema nor freeze")
        epochs = [thaw.epoch for thaw in self.thaws]
        if epochs != sorted(set(epochs)):
            raise ValueError("unfreeze must name epochs in rising order, each once")
        if epochs and epochs[-1] >= self.epochs:
            raise ValueError(
                f"unfreeze names epoch {epochs[-1]}, but training ends after {self.epochs}"
            )

    def _check_optimisation(self) -> None:
        kind = task_class(self.task)
        if self.loss not in ("auto", *kind.losses):
            raise ValueError(
                f"loss {self.loss} is not for {self.task}; take {' or '.join(kind.losses)}"
            )
        used = {
            "label_smoothing": self.label_smoothing > 0,
            "class_weights": self.class_weights != "none",
            "cutmix": self.cutmix > 0,
        }
        for name, is_used in used.items():
            if is_used and name not in kind.training_options:
                raise ValueError(f"{name} is not for {self.task}; leave it out")

    @property
    def thaws(self) -> tuple[Thaw, ...]:
        """The steps of `unfreeze`.

        Raises:
            ValueError: One of them is not EPOCH:STAGES.
        """
        thaws = []
        for text in self.unfreeze:
            found = _THAW.fullmatch(text)
            if found is None or found[2] == "0":
                raise ValueError(f"unfreeze: {text!r} is not EPOCH:STAGES, as in 3:1 or 6:all")
            stages = None if found[2] == "all" else int(found[2])
            thaws.append(Thaw(epoch=int(found[1]), stages=stages))
        return tuple(thaws)

    @property
    def frozen_stages(self) -> int | None:
        """How many of the first stages begin frozen; None for all but the head."""
        return None if self.freeze == "backbone" else int(self.freeze)

    @property
    def min_workers(self) -> int:
        """How many workers training needs to go on."""
        return self._worker_range[0]

    @property
    def max_workers(self) -> int:
        """How many workers it starts when there is room."""
        return self._worker_range[1]

    @property
    def _worker_range(self) -> tuple[int, int]:
        found = _WORKERS.fullmatch(str(self.workers))
        if found is None:
            raise ValueError(f"workers: {self.workers!r} is no number from 1 on, nor LEAST..MOST")
        least, most = int(found[1]), int(found[2] or found[1])
        if least > most:
            raise ValueError(f"workers: {least} is more than {most}; write LEAST..MOST")
        return least, most

    @property
    def loss_options(self) -> LossOptions:
        """How the task computes losses."""
        return LossOptions(
            name=None if self.loss == "auto" else self.loss,
            class_weights=self.class_weights,
            focal_gamma=self.focal_gamma,
            label_smoothing=self.label_smoothing,
        )

    def to_yaml(self) -> str:
        """Return the specification as YAML: every field, under the heading of its panel."""
        lines: list[str] = []
        values = self.model_dump(mode="json")
        panel = ""
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            if extra["panel"] != panel:
                panel = str(extra["panel"])
                lines += ["", f"# {panel}"]
            lines.append(f"{name}: {_on_one_line(values[name])}  # {field.description}")
        return "\n".join(lines[1:]) + "\n"


def _on_one_line(value: object) -> str:
    """Return a value as YAML; text that has lines of its own is quoted with escapes."""
    layout: dict[str, Any] = {"default_flow_style": True, "width": math.inf}
    plain = str(yaml.safe_dump(value, **layout)).removesuffix("...\n").strip()
    return (
        plain if "\n" not in plain else yaml.safe_dump(value, default_style='"', **layout).strip()
    )


def read_spec(location: str, changes: Mapping[str, Any]) -> TrainSpec:
    """Read a specification from a YAML file.

    Args:
        location: Of the file.
        changes: Fields that win over the file's.

    Raises:
        InputError: It is not there, is no YAML, or asks for what cannot be; with the field.
    """
    fields = read_fields(location, "specification")
    return make_spec({**fields, **changes}, where=location)


def read_fields(location: str, kind: str) -> dict[str, Any]:
    """Read a YAML file of fields.

    Args:
        location: Of the file.
        kind: What it should be, for messages.

    Raises:
        InputError: It is not there, or is no YAML.
    """
    try:
        fields = yaml.safe_load(storage.read_bytes(location))
    except FileNotFoundError:
        raise InputError(f"There is no {kind} {location}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fault = str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{location}{place} is not YAML ({fault}).") from None
    if not isinstance(fields, dict):
        raise InputError(f"{location} must hold fields, as in `epochs: 20`.")
    return fields


def make_spec(fields: Mapping[str, Any], *, where: str = "") -> TrainSpec:
    """Make a specification from fields.

    Raises:
        InputError: Naming the field at fault.
        UnknownNameError: A field does not exist.
    """
    known = list(TrainSpec.model_fields)
    for field in fields:
        if field not in known:
            raise UnknownNameError("field of a specification", str(field), known)
    for field in ("data", "name"):
        if fields.get(field) is None:
            raise InputError(f"What is the {field}? Name it, here or in a specification file.")
    try:
        return TrainSpec.model_validate(dict(fields))
    except ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise InputError(f"{prefix}{first_fault(error)}.") from None
