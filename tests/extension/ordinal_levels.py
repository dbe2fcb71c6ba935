"""A package outside Eagleray: a task, an architecture, a source and a sink.

An entry point of the group `eagleray.extensions` names this module, which registers all four.

The task is ordinal classification by cumulative logits: output k says whether the level is above k
(Niu et al., "Ordinal Regression with Multiple Output CNN for Age Estimation", CVPR 2016).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.feather

from eagleray.batch.sinks import register_sink
from eagleray.models.architectures import Architecture, register_architecture
from eagleray.sources import InputSpec, OpenedSource, SkippedFiles, Source, register_source
from eagleray.sources.listing import with_user_columns
from eagleray.sources.tables import list_locations
from eagleray.tasks import LossOptions, Multiclass, Prediction, register_task
from eagleray.tasks.base import Floats, ImageLosses, Task, WeightedMetrics
from eagleray.tasks.classification.losses import soft_binary_cross_entropies
from eagleray.tasks.label_metrics import weighted_mean
from eagleray.tasks.tensors import NamedTensor, TensorSpec, number_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_task
class Ordinal(Multiclass):
    """Exactly one of several ordered labels holds; the labels are numbers."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "mean_level_error")
    losses: ClassVar[tuple[str, ...]] = ("cumulative",)
    training_options: ClassVar[frozenset[str]] = frozenset()
    fitted: ClassVar[frozenset[str]] = frozenset()

    name: Literal["ordinal"] = "ordinal"  # type: ignore[assignment]

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Order the labels as numbers."""
        alphabetical = Multiclass.from_labels(texts, uris).labels
        return cls(labels=tuple(sorted(alphabetical, key=float)))

    @property
    def num_outputs(self) -> int:
        """One logit for each level but the lowest."""
        return len(self.labels) - 1

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Return the binary cross-entropy of being above each level."""
        from torch.nn import functional

        def losses(logits: Tensor, targets: Tensor) -> Tensor:
            levels = targets.new_tensor(range(self.num_outputs))
            above = (targets[:, None] > levels).float()
            values = functional.binary_cross_entropy_with_logits(logits, above, reduction="none")
            return values.mean(dim=1)

        return losses

    def teacher_losses(self, teacher: Task, temperature: float) -> ImageLosses:
        """Return the divergence from the teacher's probability of being above each level."""
        return soft_binary_cross_entropies(temperature)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each level (N, num_labels)."""
        from torch.nn import functional

        above = logits.sigmoid().cummin(dim=1).values
        return functional.pad(above, (1, 0), value=1.0) - functional.pad(above, (0, 1))

    # --- metrics ---

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Add the mean number of levels between prediction and truth."""
        errors = np.abs(decisions.cpu().numpy() - self.truth(targets))
        found = super().training_metrics(decisions, targets)
        return {**found, "mean_level_error": float(errors.mean())}

    @property
    def headline_names(self) -> tuple[str, ...]:
        """Put the level error beside those of a classification."""
        return (*super().headline_names, "mean_level_error")

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Add the level error."""
        return (*super().measured_names(targets), "mean_level_error")

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Add the level error."""
        errors = np.abs(self.predicted(outputs) - self.truth(targets))
        of_classes = super().weighted_metrics(outputs, targets)

        def metrics(weights: Floats) -> dict[str, Floats]:
            return {**of_classes(weights), "mean_level_error": weighted_mean(errors, weights)}

        return metrics

    def facts(self, outputs: Tensor, targets: Tensor) -> dict[str, str]:
        """Tell the order; there is no temperature to fit."""
        return {"levels": " < ".join(self.labels)}

    # --- results ---

    def expected_level(self, prediction: Prediction) -> float:
        """Return the mean level under the prediction's probabilities."""
        return float(prediction.probabilities @ np.arange(len(self.labels)))

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Add the expected level."""
        return {**super().result_types(), "expected_level": pa.float64()}

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Add the expected level."""
        row = super().result_row(prediction, top_k)
        return {**row, "expected_level": self.expected_level(prediction)}

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Add the expected level."""
        members = super().response(prediction, top_k=top_k, threshold=threshold)
        return {**members, "expected_level": self.expected_level(prediction)}

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Add the expected level."""
        return (*super().tensor_specs(), TensorSpec("expected_level", "FP32"))

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Add the expected level."""
        levels = [np.nan if one is None else self.expected_level(one) for one in predictions]
        return [*super().tensors(predictions), number_tensor("expected_level", levels)]


def build_brightness_net(architecture: Architecture) -> nn.Module:
    """Return a network that sees little more than an image's mean colour."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(architecture.in_channels, 8, kernel_size=4, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, architecture.num_outputs),
    )


register_architecture("brightness_net", build_brightness_net, size=32, color="gray")


def open_catalog(location: str, _spec: InputSpec, _skipped: SkippedFiles) -> OpenedSource:
    """List the images of `catalog:///FOLDER`, whose labels begin their names, as in `3-a.png`."""
    files = sorted(Path(location.removeprefix("catalog://")).glob("*.png"))
    user = pa.table({"label": [file.name.partition("-")[0] for file in files]})
    rows = with_user_columns(list_locations([str(file) for file in files]), user)
    return OpenedSource(location, user.schema, iter([rows]), f"{location} holds no PNG files.")


register_source(Source("catalog", lambda text: text.startswith("catalog://"), open_catalog))


class Feather:
    """Result files in the Feather format."""

    name = "feather"

    def encode(self, table: pa.Table) -> bytes:
        """Encode rows as the bytes of one file."""
        buffer = io.BytesIO()
        pyarrow.feather.write_feather(table, buffer)
        return buffer.getvalue()

    def column_names(self, content: bytes) -> list[str]:
        """Return the names of a file's columns."""
        names: list[str] = pyarrow.feather.read_table(pa.BufferReader(content)).column_names
        return names

    def decode(self, content: bytes, schema: pa.Schema) -> pa.Table:
        """Read some columns of a file."""
        found = pyarrow.feather.read_table(pa.BufferReader(content), columns=schema.names)
        return found.select(schema.names).cast(schema)


register_sink(Feather())
