"""The specification of a training run: one frozen, validated value.

    spec = TrainSpec(data="flowers/", name="flowers", architecture="resnet18")
    spec.to_yaml()

    read_spec("flowers.yaml", {"epochs": 5})

Every field is a field of the YAML file and an option of the command line. Fields are listed in the
order of the flow: data, model, optimisation, augmentation, run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from eagleray.core.extensions import is_import_path
from eagleray.core.names import ModelName
from eagleray.core.spec import Names, Texts, panel_of, spec_field, worker_range
from eagleray.core.types import DeviceChoice
from eagleray.data.label_format import MAX_INVALID
from eagleray.io.spec_fields import S3_PANEL, SOURCES_PANEL, ReadFields
from eagleray.io.yaml_fields import read_fields
from eagleray.tasks import LossOptions, TaskName, task_class
from eagleray.training.spec_values import ClassWeights, Tags, class_weight, require_tags

__all__ = ["DATA", "RUN", "TrainPrecision", "TrainSpec", "UnfreezeStep", "read_spec"]

TrainPrecision = Literal["float32", "bfloat16"]
SplitFraction = Annotated[float, Field(ge=0.0, le=0.9)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

_UNFREEZE = re.compile(r"(\d+):(\d+|all)")

TEACHER_WEIGHT, TEACHER_TEMPERATURE = 0.9, 4.0
"""Those of Tian, Krishnan and Isola (2020) for small residual networks on CIFAR-100."""

DATA, MODEL, OPTIMISATION = "Data", "Model", "Optimisation"
AUGMENTATION, RUN = "Augmentation", "Run"


@dataclass(frozen=True)
class UnfreezeStep:
    """One step of gradual unfreezing.

    Attributes:
        epoch: Number of finished epochs after which the step applies.
        stages: Number of stages to unfreeze, the deepest first; None for all frozen ones.
    """

    epoch: int
    stages: int | None


class TrainSpec(ReadFields):
    """A training run; each field is described beside it."""

    data: str = spec_field(
        ...,
        DATA,
        "Folder with one subfolder per class, a table, or a label format such as COCO.",
        names=Names.INPUT,
    )
    task: TaskName = spec_field(
        "multiclass",
        DATA,
        "Prediction task: binary, multiclass, multilabel, regression, detection, semantic, "
        "instance, panoptic, or "
        "one of an extension.",
    )
    positive: str | None = spec_field(
        None, DATA, "Positive label of a binary task; default: the second in alphabetical order."
    )
    column: str | None = spec_field(None, DATA, "Column of the image locations.")
    label_column: str | None = spec_field(None, DATA, "Column of the labels.")
    label_columns: Texts = spec_field((), DATA, "Columns of 0 and 1, one per label.")
    separator: str | None = spec_field(None, DATA, "Separator of several labels in one column.")
    group_column: str | None = spec_field(
        None, DATA, "Column whose equal values stay in one split, such as near-duplicates."
    )
    attributes: Texts = spec_field(
        (), DATA, "Columns that the network takes beside the image: numbers, or categories."
    )
    keep_duplicates_together: bool = spec_field(
        False, DATA, "Keep duplicates, exact or near, in one split."
    )
    test_data: str | None = spec_field(
        None, DATA, "Separate test set, in the form of the data.", names=Names.INPUT
    )
    split_file: str | None = spec_field(
        None, DATA, "Existing split file to use instead of a new split.", names=Names.INPUT
    )
    validation_fraction: SplitFraction = spec_field(
        0.1, DATA, "Fraction of the data for validation, which selects the best epoch."
    )
    test_fraction: SplitFraction = spec_field(0.2, DATA, "Fraction of the data for the final test.")
    folds: int = spec_field(
        0, DATA, "Number of cross-validation folds; 0: none. Folds register no model.", ge=0
    )
    max_unreadable: Fraction = spec_field(
        0.05, DATA, "Maximum fraction of images that cannot be decoded."
    )
    max_invalid: Fraction = spec_field(
        MAX_INVALID,
        DATA,
        "Maximum fraction of invalid objects, and of images with invalid labels.",
    )

    name: ModelName = spec_field(..., MODEL, "Name of the registered model.")
    architecture: str | None = spec_field(
        None,
        MODEL,
        "See `eagleray models architectures`, or an import path; default: the parent's, or "
        "resnet18, detector/resnet18 for detection, unet/resnet18 for semantic, and "
        "panoptic/resnet18 for instance and panoptic.",
        names=Names.CODE,
    )
    pretrained: bool = spec_field(False, MODEL, "Start from published weights.")
    parent: str | None = spec_field(
        None,
        MODEL,
        "Model to start from: its architecture, contract and weights, with a new head.",
        names=Names.MODEL,
    )
    prune: float = spec_field(
        0.0,
        MODEL,
        "Share of the parent's multiply-adds to remove before training, by pruning channels.",
        ge=0,
        le=0.95,
    )
    contract: str | None = spec_field(None, MODEL, "Name of the image contract.")
    image_size: int | None = spec_field(None, MODEL, "Input side in pixels.", ge=1, le=8192)
    dropout: float = spec_field(0.0, MODEL, "Dropout probability before the head.", ge=0, lt=1)
    freeze: int | str = spec_field(
        0, MODEL, "Number of first stages to freeze, or `backbone` for all but the head."
    )
    unfreeze: Texts = spec_field(
        (), MODEL, "Stages to unfreeze later, as EPOCH:STAGES or EPOCH:all."
    )

    epochs: int = spec_field(20, OPTIMISATION, "Number of passes over the training split.", ge=1)
    batch_size: int = spec_field(
        64, OPTIMISATION, "Images of an optimizer step, over all workers.", ge=1
    )
    gradient_accumulation_steps: int = spec_field(
        1, OPTIMISATION, "Micro-batches that each batch is divided into, to save memory.", ge=1
    )
    optimizer: Literal["adamw", "adam", "sgd"] = spec_field("adamw", OPTIMISATION, "Optimizer.")
    learning_rate: float = spec_field(2e-3, OPTIMISATION, "Peak learning rate.", gt=0)
    lr_schedule: Literal["one_cycle", "cosine", "linear", "step", "constant"] = spec_field(
        "one_cycle", OPTIMISATION, "Learning-rate schedule."
    )
    warmup_ratio: Fraction = spec_field(0.2, OPTIMISATION, "Fraction of the steps for warmup.")
    layer_decay: float = spec_field(
        1.0,
        OPTIMISATION,
        "Layer-wise learning-rate decay: factor from each stage to the one before it.",
        gt=0,
        le=1,
    )
    momentum: float = spec_field(0.9, OPTIMISATION, "Nesterov momentum of SGD.", ge=0, lt=1)
    weight_decay: float = spec_field(
        1e-4, OPTIMISATION, "Weight decay: decoupled for AdamW, else L2.", ge=0
    )
    loss: str = spec_field(
        "auto",
        OPTIMISATION,
        "Loss function: cross_entropy, bce, focal, mse, huber, l1, or an import path; auto: the "
        "task's default.",
        names=Names.CODE,
    )
    focal_gamma: float = spec_field(2.0, OPTIMISATION, "Gamma of the focal loss.", ge=0)
    huber_delta: float = spec_field(
        1.0,
        OPTIMISATION,
        "Error from which the Huber loss is linear, in standard deviations of the labels.",
        gt=0,
    )
    label_smoothing: float = spec_field(0.0, OPTIMISATION, "Label smoothing.", ge=0, lt=1)
    teacher: str | None = spec_field(
        None,
        OPTIMISATION,
        "Registered version to learn from beside the labels, as NAME@ALIAS or NAME/VERSION.",
        names=Names.MODEL,
    )
    teacher_weight: Fraction = spec_field(
        TEACHER_WEIGHT, OPTIMISATION, "Weight of the teacher's predictions; labels have the rest."
    )
    teacher_temperature: float = spec_field(
        TEACHER_TEMPERATURE,
        OPTIMISATION,
        "Temperature of both predictions; above 1, unlikely labels count more.",
        gt=0,
        le=1000,
    )
    class_weights: ClassWeights = spec_field(
        "none",
        OPTIMISATION,
        "Class weights: none, balanced (inversely proportional to frequency), or LABEL=WEIGHT.",
    )
    sampler: Literal["shuffle", "balanced"] = spec_field(
        "shuffle", OPTIMISATION, "Sampling; balanced: as many images of each class in an epoch."
    )
    max_grad_norm: float = spec_field(0.0, OPTIMISATION, "Max gradient norm; 0: no clipping.", ge=0)
    ema_decay: float = spec_field(
        0.0, OPTIMISATION, "Decay of the moving average of weights (EMA); 0: none.", ge=0, lt=1
    )
    monitor: str = spec_field(
        "auto",
        OPTIMISATION,
        "Validation metric that selects the best epoch, or loss; auto: the task's choice.",
    )
    mode: Literal["auto", "min", "max"] = spec_field(
        "auto", OPTIMISATION, "Whether low or high values of the monitored metric are good."
    )
    patience: int = spec_field(
        0, OPTIMISATION, "Epochs without improvement before early stopping; 0: never.", ge=0
    )
    calibrate: bool = spec_field(
        True, OPTIMISATION, "Fit a temperature on the validation split (classifiers)."
    )
    thresholds: Literal["half", "f1"] = spec_field(
        "half", OPTIMISATION, "Decision thresholds; f1: the best F1 of each label on validation."
    )
    precision: TrainPrecision = spec_field("float32", OPTIMISATION, "Training precision.")

    random_translation: float = spec_field(
        0.0, AUGMENTATION, "Maximum translation as a fraction of the image side.", ge=0, le=0.5
    )
    horizontal_flip: bool = spec_field(False, AUGMENTATION, "Flip half of the images horizontally.")
    vertical_flip: bool = spec_field(False, AUGMENTATION, "Flip half of the images vertically.")
    random_resized_crop: float = spec_field(
        1.0, AUGMENTATION, "Minimum area fraction of a RandomResizedCrop; 1: none.", gt=0, le=1
    )
    multi_scale: float = spec_field(
        0.0,
        AUGMENTATION,
        "Largest change of the image side from step to step, as a fraction; 0: none.",
        ge=0,
        le=0.5,
    )
    color_jitter: float = spec_field(
        0.0, AUGMENTATION, "Strength of ColorJitter: brightness, contrast, saturation.", ge=0, le=1
    )
    randaugment: int = spec_field(
        0, AUGMENTATION, "Magnitude of RandAugment; 0: none.", ge=0, le=30
    )
    random_erasing: Fraction = spec_field(0.0, AUGMENTATION, "Probability of random erasing.")
    transform: str | None = spec_field(
        None,
        AUGMENTATION,
        "Import path of a transform of your own, such as my_transforms:augment.",
        names=Names.CODE,
    )
    mosaic: Fraction = spec_field(
        0.0, AUGMENTATION, "Probability of putting four images together (tasks of objects)."
    )
    mixup: float = spec_field(0.0, AUGMENTATION, "Alpha of mixup; 0: none.", ge=0)
    cutmix: float = spec_field(0.0, AUGMENTATION, "Alpha of CutMix; 0: none.", ge=0)

    workers: int | str = spec_field(
        1, RUN, "Number of worker processes; an elastic range is written 2..8."
    )
    device: DeviceChoice = spec_field("auto", RUN, "Device to train on.")
    strategy: Literal["ddp", "fsdp"] = spec_field(
        "ddp", RUN, "Distributed strategy; fsdp shards weights and optimizer state."
    )
    checkpoint_steps: int = spec_field(
        0, RUN, "Steps between checkpoints; 0: at the end of each epoch.", ge=0
    )
    keep_checkpoints: int = spec_field(2, RUN, "Number of newest checkpoints to keep.", ge=1)
    seed: int = spec_field(0, RUN, "Random seed.", ge=0)
    experiment: str | None = spec_field(
        None, RUN, "MLflow experiment of the run; default: eagleray.", min_length=1, max_length=500
    )
    tags: Tags = spec_field((), RUN, "Tag of the MLflow run, as KEY=VALUE; in YAML also a mapping.")
    notes: str | None = spec_field(
        None, RUN, "Description of the MLflow run, in Markdown.", max_length=8000
    )

    @field_validator("monitor")
    @classmethod
    def _read_monitor(cls, value: str) -> str:
        return value.removeprefix("validation_")  # as the epochs of `--json` and MLflow name it

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: int | str) -> int | str:
        worker_range(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = []
        checks = (
            self._check_data,
            self._check_model,
            self._check_optimisation,
            self._check_batch_size,
            lambda: require_tags(self.tags),
        )
        for check in checks:
            try:
                check()
            except ValueError as fault:
                faults.append(str(fault))
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _check_batch_size(self) -> None:
        smallest = self.max_workers * self.gradient_accumulation_steps
        if self.batch_size < smallest:
            raise ValueError(
                f"batch_size {self.batch_size} is divided among {self.max_workers} workers and "
                f"{self.gradient_accumulation_steps} micro-batches, so it must be at least "
                f"{smallest}"
            )

    def _check_data(self) -> None:
        if self.split_file is None:
            if self.validation_fraction == 0:
                raise ValueError(
                    "validation_fraction must be above 0: validation selects the best epoch"
                )
            if self.validation_fraction + self.test_fraction >= 1:
                raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.label_columns and self.label_column:
            raise ValueError("label_column and label_columns exclude each other; name one of them")
        twice = [name for name in self.attributes if self.attributes.count(name) > 1]
        if twice:
            raise ValueError(f"attributes must name each column once, and names {twice[0]} twice")
        if self.positive is not None and not task_class(self.task).has_positive:
            raise ValueError(f"positive is not for {self.task}; leave it out, or set task: binary")
        if self.keep_duplicates_together and self.split_file is not None:
            raise ValueError(
                "keep_duplicates_together divides the data anew, and split_file names a split; "
                "leave one of them out"
            )
        if self.folds == 1:
            raise ValueError("folds must be 2 or more, or 0 for none")

    def _check_model(self) -> None:
        if self.parent is not None and self.pretrained:
            raise ValueError("parent and pretrained exclude each other: both give initial weights")
        if self.prune and self.parent is None:
            raise ValueError("prune removes channels of trained weights: set parent, too")
        if self.freeze != "backbone" and not str(self.freeze).isdecimal():
            raise ValueError("freeze must be a number of stages from 0 on, or backbone")
        if self.unfreeze and self.frozen_stages == 0:
            raise ValueError("unfreeze requires frozen stages: set freeze")
        if self.frozen_stages != 0 and not (self.pretrained or self.parent):
            raise ValueError("freeze would keep random weights; name a parent, or set pretrained")
        if self.strategy == "fsdp" and (self.ema_decay or self.freeze):
            raise ValueError("strategy fsdp supports neither ema_decay nor freeze")
        epochs = [step.epoch for step in self.unfreeze_steps]
        if epochs != sorted(set(epochs)):
            raise ValueError("unfreeze must name epochs in rising order, each once")
        if epochs and epochs[-1] >= self.epochs:
            raise ValueError(
                f"unfreeze names epoch {epochs[-1]}, but training ends after {self.epochs}"
            )

    def _check_optimisation(self) -> None:
        kind = task_class(self.task)
        is_own = is_import_path(self.loss)
        if not is_own and self.loss not in ("auto", *kind.losses):
            raise ValueError(
                f"loss {self.loss} is not for {self.task}; take {' or '.join(kind.losses)}"
            )
        self._check_augmentation()
        used = {
            "label_smoothing": self.label_smoothing > 0,
            "class_weights": self.class_weights != "none",
            "sampler": self.sampler != "shuffle",
            "cutmix": self.cutmix > 0,
        }
        for name, is_used in used.items():
            if is_used and name not in kind.training_options:
                raise ValueError(f"{name} is not for {self.task}; leave it out")
            if is_used and is_own and name in ("label_smoothing", "class_weights"):
                raise ValueError(f"{name} is not for a loss of your own; leave it out")
        if self.transform is not None and not is_import_path(self.transform):
            raise ValueError(
                f"transform {self.transform} must be an import path such as my_transforms:augment"
            )
        if self.sampler == "balanced" and self.class_weights == "balanced":
            raise ValueError(
                "sampler balanced and class_weights balanced exclude each other: each of them "
                "alone gives every class the same weight"
            )
        options = (self.teacher_weight, self.teacher_temperature)
        if self.teacher is None and options != (TEACHER_WEIGHT, TEACHER_TEMPERATURE):
            raise ValueError(
                "teacher_weight and teacher_temperature are those of a teacher: set teacher, too"
            )
        if self.mode != "auto" and self.monitor == "auto":
            raise ValueError("mode is that of a named metric: set monitor, or leave mode out")

    def _check_augmentation(self) -> None:
        """Refuse what moves pixels without their objects, and a mosaic of images without any."""
        has_objects = task_class(self.task).label_kind == "objects"
        for name in ("mixup", "cutmix", "randaugment") if has_objects else ("mosaic",):
            if getattr(self, name):
                raise ValueError(f"{name} is not for {self.task}; leave it out")

    @property
    def tag_values(self) -> dict[str, str]:
        """The values of `tags` by key."""
        return {key: value for key, _, value in (tag.partition("=") for tag in self.tags)}

    @property
    def unfreeze_steps(self) -> tuple[UnfreezeStep, ...]:
        """The steps of `unfreeze`.

        Raises:
            ValueError: If one of them is not EPOCH:STAGES.
        """
        steps = []
        for text in self.unfreeze:
            match = _UNFREEZE.fullmatch(text)
            if match is None or match[2] == "0":
                raise ValueError(f"unfreeze: {text!r} is not EPOCH:STAGES, as in 3:1 or 6:all")
            stages = None if match[2] == "all" else int(match[2])
            steps.append(UnfreezeStep(epoch=int(match[1]), stages=stages))
        return tuple(steps)

    @property
    def frozen_stages(self) -> int | None:
        """Number of stages that are frozen at first; None for all but the head."""
        return None if self.freeze == "backbone" else int(self.freeze)

    @property
    def min_workers(self) -> int:
        """Number of workers below which training waits."""
        return worker_range(self.workers)[0]

    @property
    def max_workers(self) -> int:
        """Number of workers that train where resources allow it."""
        return worker_range(self.workers)[1]

    @property
    def label_weights(self) -> dict[str, float]:
        """Weights of `class_weights` by label; empty if it names none."""
        texts = () if isinstance(self.class_weights, str) else self.class_weights
        return dict(map(class_weight, texts))

    @property
    def balances_classes(self) -> bool:
        """Whether classes are weighted, or sampled in balance."""
        return self.class_weights != "none" or self.sampler == "balanced"

    @property
    def mixes_images(self) -> bool:
        """Whether images are mixed with others, so that they have no label of their own."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def loss_options(self) -> LossOptions:
        """Options of the task's loss."""
        plain: Literal["none", "balanced"] = (
            "balanced" if self.class_weights == "balanced" else "none"
        )
        return LossOptions(
            name=None if self.loss == "auto" else self.loss,
            class_weights=self.label_weights or plain,
            focal_gamma=self.focal_gamma,
            huber_delta=self.huber_delta,
            label_smoothing=self.label_smoothing,
        )

    def to_yaml(self) -> str:
        """Return the specification as YAML, with every field under the heading of its panel."""
        lines: list[str] = []
        values = self.model_dump(mode="json")
        panel = ""
        fields = type(self).model_fields.items()
        # Those of the base classes, about what is read and S3, come last.
        for name, field in sorted(
            fields,
            key=lambda item: panel_of(item[1].json_schema_extra) in (SOURCES_PANEL, S3_PANEL),
        ):
            if panel_of(field.json_schema_extra) != panel:
                panel = panel_of(field.json_schema_extra)
                lines += ["", f"# {panel}"]
            lines.append(f"{name}: {_on_one_line(values[name])}  # {field.description}")
        return "\n".join(lines[1:]) + "\n"


def _on_one_line(value: object) -> str:
    """Return a value as YAML; text that contains line breaks is quoted with escapes."""
    layout: dict[str, Any] = {"default_flow_style": True, "width": math.inf}
    plain = str(yaml.safe_dump(value, **layout)).removesuffix("...\n").strip()
    return (
        plain if "\n" not in plain else yaml.safe_dump(value, default_style='"', **layout).strip()
    )


def read_spec(location: str, changes: Mapping[str, Any]) -> TrainSpec:
    """Read a specification from a YAML file.

    Args:
        location: Location of the file.
        changes: Fields that replace those of the file.

    Raises:
        InputError: If the file is missing, not YAML or not valid; the message names the field.
        UnknownNameError: If a field does not exist.
    """
    return TrainSpec.make({**read_fields(location), **changes}, where=location)
