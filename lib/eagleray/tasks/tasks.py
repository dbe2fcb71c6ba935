"""What a model answers: one small class for each task, from targets to predictions.

    Task.num_outputs        length of the network's output
    Task.encode             the user's label -> target
    Task.loss               what training minimises
    Task.activate           logits -> probabilities or values
    Task.postprocess        activated outputs -> Prediction
    Task.metric_names       what `metrics` reports, the first one being what "best" means

The classes are frozen values: a package stores them as the `task` field of its `model.json`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from eagleray.core.errors import InputError
from eagleray.core.limits import MAX_LABELS, MAX_MANIFEST_BYTES, MAX_NAME_LENGTH
from eagleray.tasks.outcome import Prediction

if TYPE_CHECKING:  # a driver knows a model's task without the seconds and memory of PyTorch
    from torch import Tensor

__all__ = [
    "LABEL_SEPARATOR",
    "Binary",
    "Multiclass",
    "Multilabel",
    "Regression",
    "Task",
    "TaskName",
    "make_task",
]

Scores = npt.NDArray[np.float32]
TaskName = Literal["binary", "multiclass", "multilabel", "regression"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[FiniteFloat, Field(gt=0.0)]
"""What logits are divided by before they become probabilities: above 1 they get more modest."""

LABEL_SEPARATOR = "|"
Label = Annotated[str, Field(max_length=MAX_NAME_LENGTH)]


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    metric_names: ClassVar[tuple[str, ...]]
    target_type: ClassVar[Literal["float32", "int64"]] = "float32"

    @property
    def unit(self) -> float:
        """What differences of outputs are measured in: 1 for probabilities."""
        return 1.0

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Length of the network's output vector."""

    @abstractmethod
    def encode(self, text: str) -> int | float | list[float]:
        """Turn a label as written in a table into a target.

        Raises:
            InputError: The text is no label of this task.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of logits (N, num_outputs) against encoded targets (N, …)."""

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """Turn logits (N, num_outputs) into probabilities of labels, or into values (N, 1)."""

    @abstractmethod
    def postprocess(self, outputs: Scores) -> Prediction:
        """Turn one image's activated outputs into its prediction."""

    @model_serializer(mode="wrap")
    def _without_what_older_packages_lack(
        self, serialize: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out a temperature that changes nothing: packages made before had no such field."""
        fields: dict[str, Any] = serialize(self)
        if fields.get("temperature") == 1.0:
            del fields["temperature"]
        return fields


class Multiclass(_Task):
    """Exactly one of several labels holds."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "f1_macro")
    target_type: ClassVar[Literal["float32", "int64"]] = "int64"

    name: Literal["multiclass"] = "multiclass"
    labels: Annotated[tuple[Label, ...], Field(min_length=2, max_length=MAX_LABELS, fail_fast=True)]
    temperature: Temperature = 1.0

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _require_unique(self.labels)
        return self

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return len(self.labels)

    def encode(self, text: str) -> int:
        """Return the index of the label."""
        return _index(self.labels, text)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        from torch.nn import functional

        return functional.cross_entropy(logits, targets)

    def activate(self, logits: Tensor) -> Tensor:
        """Softmax, at the temperature."""
        return (logits / self.temperature).softmax(dim=1)

    def postprocess(self, outputs: Scores) -> Prediction:
        """Take the likeliest label."""
        best = int(outputs.argmax())
        label = self.labels[best]
        return Prediction(label, float(outputs[best]), (label,), None, outputs)


class Binary(_Task):
    """One of two labels holds; the second one is the positive."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "f1")

    name: Literal["binary"] = "binary"
    labels: tuple[Label, Label]
    threshold: Probability = 0.5
    temperature: Temperature = 1.0

    @model_validator(mode="after")
    def _unique(self) -> Self:
        _require_unique(self.labels)
        return self

    @property
    def num_outputs(self) -> int:
        """One logit, of the positive label."""
        return 1

    def encode(self, text: str) -> float:
        """Return 1.0 for the positive label and 0.0 for the other."""
        return float(_index(self.labels, text))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy on the logit."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(logits.squeeze(1), targets)

    def activate(self, logits: Tensor) -> Tensor:
        """Return the probabilities of both labels (N, 2), at the temperature."""
        import torch

        positive = (logits / self.temperature).sigmoid()
        return torch.cat([1 - positive, positive], dim=1)

    def postprocess(self, outputs: Scores) -> Prediction:
        """Take the positive label from the threshold on."""
        best = int(outputs[1] >= self.threshold)
        label = self.labels[best]
        return Prediction(label, float(outputs[best]), (label,), None, outputs)


class Multilabel(_Task):
    """Any number of labels hold, each judged against its own threshold."""

    metric_names: ClassVar[tuple[str, ...]] = ("f1_macro", "accuracy")

    name: Literal["multilabel"] = "multilabel"
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS, fail_fast=True)]
    thresholds: Annotated[tuple[Probability, ...], Field(max_length=MAX_LABELS, fail_fast=True)]
    temperature: Temperature = 1.0

    @model_validator(mode="after")
    def _unique(self) -> Self:
        if len(self.thresholds) != len(self.labels):
            raise ValueError(
                f"thresholds has {len(self.thresholds)} values for {len(self.labels)} labels"
            )
        if any(LABEL_SEPARATOR in label for label in self.labels):
            raise ValueError(f"labels must not contain {LABEL_SEPARATOR!r}, which separates them")
        _require_unique(self.labels)
        return self

    @property
    def num_outputs(self) -> int:
        """One logit for each label."""
        return len(self.labels)

    def encode(self, text: str) -> list[float]:
        """Return 1.0 at the place of every label in `a|b|…`; an empty text means none."""
        target = [0.0] * len(self.labels)
        for part in split_labels(text):
            target[_index(self.labels, part)] = 1.0
        return target

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over labels."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(logits, targets)

    def activate(self, logits: Tensor) -> Tensor:
        """Sigmoid of each logit, at the temperature."""
        return (logits / self.temperature).sigmoid()

    def postprocess(self, outputs: Scores) -> Prediction:
        """Take every label from its threshold on; `label` is the likeliest of them."""
        holds = [index for index, limit in enumerate(self.thresholds) if outputs[index] >= limit]
        best = max(holds, key=lambda index: outputs[index], default=None)
        return Prediction(
            label=None if best is None else self.labels[best],
            score=float(outputs.max() if best is None else outputs[best]),
            labels=tuple(self.labels[index] for index in holds),
            value=None,
            probabilities=outputs,
        )


class Regression(_Task):
    """A number; the network predicts it in units of the training table's spread.

    Attributes:
        mean: Mean of the training targets.
        std: Standard deviation of the training targets.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("r2", "mean_absolute_error")

    name: Literal["regression"] = "regression"
    mean: FiniteFloat = 0.0
    std: Annotated[FiniteFloat, Field(gt=0.0)] = 1.0

    @property
    def unit(self) -> float:
        """The spread of the training targets."""
        return self.std

    @property
    def labels(self) -> tuple[str, ...]:
        """A regression has no labels."""
        return ()

    @property
    def num_outputs(self) -> int:
        """One number."""
        return 1

    def encode(self, text: str) -> float:
        """Return the number in units of the spread."""
        return (parse_number(text) - self.mean) / self.std

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error, in units of the spread."""
        from torch.nn import functional

        return functional.mse_loss(logits.squeeze(1), targets)

    def activate(self, logits: Tensor) -> Tensor:
        """Return values (N, 1) in the unit of the training table."""
        return logits * self.std + self.mean

    def postprocess(self, outputs: Scores) -> Prediction:
        """Take the value."""
        return Prediction(None, None, (), float(outputs[0]), np.empty(0, np.float32))


Task = Annotated[Binary | Multiclass | Multilabel | Regression, Field(discriminator="name")]


def split_labels(text: str) -> list[str]:
    """Split `a|b|c` into its labels."""
    return [part.strip() for part in text.split(LABEL_SEPARATOR) if part.strip()]


def parse_number(text: str) -> float:
    """Read a regression target.

    Raises:
        InputError: The text is not a finite number.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"{text!r} is not a number, which a regression needs as its label.")
    return value


def make_task(name: TaskName, texts: Sequence[str], uris: Sequence[str] = ()) -> Task:
    """Make the task of a kind that fits the labels of a training table.

    Args:
        name: The kind.
        texts: Every label of the table, as written.
        uris: Of the image of each; with them an error names the image at fault.

    Raises:
        InputError: The labels do not fit the kind.
    """
    if not texts:
        raise InputError("The data have no labels: there is nothing to learn.")
    if name == "regression":
        return _make_regression(_parse_numbers(texts, uris))
    _require_modest_labels(name, texts)
    if name == "multilabel":
        labels = tuple(sorted({part for text in texts for part in split_labels(text)}))
        if not labels:
            raise InputError("No row of the table names a label.")
        return Multilabel(labels=labels, thresholds=(0.5,) * len(labels))
    labels = tuple(sorted(set(texts)))
    if "" in labels:
        which = f" ({uris[texts.index('')]})" if uris else ""
        raise InputError(f"A row{which} has an empty label; name its class, or leave the row out.")
    if name == "binary":
        if len(labels) != 2:
            raise InputError(
                f"A binary task needs exactly 2 labels, the data have {len(labels)}; "
                "use --task multiclass."
            )
        return Binary(labels=(labels[0], labels[1]))
    if len(labels) < 2:
        raise InputError(
            f"The data have one class only ({labels[0]!r}); a classifier needs two or more."
        )
    return Multiclass(labels=labels)


def _require_modest_labels(name: TaskName, texts: Sequence[str]) -> None:
    """Refuse labels that no package can hold, before a model is trained on them."""
    labels = set(texts)
    if name == "multilabel":
        labels = {label for text in labels for label in split_labels(text)}
    if len(labels) > MAX_LABELS:
        raise InputError(
            f"The data have {len(labels):,} labels, {MAX_LABELS:,} is the limit; group them."
        )
    longest = max(labels, key=len, default="")
    if len(longest) > MAX_NAME_LENGTH:
        raise InputError(
            f"The label that begins with {longest[:40]!r} has {len(longest):,} characters, "
            f"{MAX_NAME_LENGTH:,} is the limit; name it shorter."
        )
    num_bytes = len(json.dumps(list(labels)))
    if num_bytes > MAX_MANIFEST_BYTES // 2:  # beside what else is in a manifest
        raise InputError(
            f"The labels have {num_bytes:,} bytes in all, {MAX_MANIFEST_BYTES // 2:,} is the "
            "limit; name them shorter."
        )


def _parse_numbers(texts: Sequence[str], uris: Sequence[str]) -> npt.NDArray[np.float64]:
    values = []
    for row, text in enumerate(texts):
        try:
            values.append(parse_number(text))
        except InputError:
            if not uris:
                raise
            raise InputError(
                f"{text!r}, the label of {uris[row]}, is not a number, which a regression needs."
            ) from None
    return np.asarray(values)


def _make_regression(values: npt.NDArray[np.float64]) -> Regression:
    if values.min() == values.max():
        raise InputError("Every label is the same number: there is nothing to learn.")
    with np.errstate(over="ignore"):
        mean, spread = values.mean(), values.std()
    if not np.isfinite(mean + spread):
        raise InputError("The labels are too far apart: their spread is no finite number.")
    return Regression(mean=float(mean), std=float(spread))


def _index(labels: Sequence[str], text: str) -> int:
    try:
        return labels.index(text)
    except ValueError:
        raise InputError(f"{text!r} is not a label of this model.") from None


def _require_unique(labels: Sequence[str]) -> None:
    if len(set(labels)) != len(labels):
        raise ValueError("labels must be unique")
