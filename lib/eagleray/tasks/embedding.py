"""Embedding: a vector for each image, by which images are compared.

Two images are as alike as their vectors are near: the vectors have length 1, so that their scalar
product is the cosine of the angle between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from eagleray.core.errors import InputError
from eagleray.core.limits import MAX_LABELS
from eagleray.imaging.geometry import Frame
from eagleray.tasks.base import (
    Floats,
    ImageLosses,
    LossOptions,
    NetworkOutput,
    Outputs,
    Task,
    WeightedMetrics,
    only_tensor,
)
from eagleray.tasks.label_metrics import weighted_mean
from eagleray.tasks.neighbors import RECALL_AT, NeighborScores, score_neighbors
from eagleray.tasks.outcome import Prediction
from eagleray.tasks.page import Section, Table
from eagleray.tasks.registration import register_task
from eagleray.tasks.review import Mistake
from eagleray.tasks.tensors import NamedTensor, TensorSpec, number_tensor

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["Embedding", "VectorPrediction"]

_SAME = 0.999
"""Cosine from which on two versions are taken to give the same vector: what bfloat16 changes is
less."""


@dataclass(frozen=True, slots=True)
class VectorPrediction(Prediction):
    """The embedding of one image.

    Attributes:
        embedding: float32 array (dimension,) of length 1.
    """

    embedding: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


@register_task
class Embedding(Task):
    """A vector of length 1.

    It is not trained: `features:MODEL` takes it from any classifier.

    Attributes:
        dimension: Length of the vectors.
    """

    metric_names: ClassVar[tuple[str, ...]] = ("recall_at_1", "knn_accuracy")
    losses: ClassVar[tuple[str, ...]] = ()
    main_member: ClassVar[str] = "embedding"
    instead: ClassVar[str] = (
        "the images nearest to another in the space of its vectors show what it takes for alike"
    )
    target_dtype: ClassVar[Literal["float32", "int64"]] = "int64"

    name: Literal["embedding"] = "embedding"
    dimension: Annotated[int, Field(ge=1, le=MAX_LABELS)]

    @classmethod
    def from_labels(cls, texts: Sequence[str], uris: Sequence[str] = ()) -> Self:
        """Refuse: there is nothing to learn."""
        raise InputError(_NOT_TRAINED)

    @property
    def labels(self) -> tuple[str, ...]:
        """A vector has no labels."""
        return ()

    @property
    def num_outputs(self) -> int:
        """The length of the vector."""
        return self.dimension

    def encode(self, text: str) -> int:
        """Return a number that is the same for the same label: 48 bits of its SHA-256."""
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    # --- training ---

    def image_losses(self, options: LossOptions, texts: Sequence[str]) -> ImageLosses:
        """Refuse: there is nothing to learn."""
        raise InputError(_NOT_TRAINED)

    def decide(self, outputs: Tensor) -> Tensor:
        """Refuse: there is nothing to learn."""
        raise InputError(_NOT_TRAINED)

    def training_metrics(self, decisions: Tensor, targets: Tensor) -> dict[str, float]:
        """Refuse: there is nothing to learn."""
        raise InputError(_NOT_TRAINED)

    # --- prediction ---

    def activate(self, outputs: NetworkOutput) -> Tensor:
        """Return vectors (N, dimension) of length 1; a vector of zeros stays one."""
        from torch.nn import functional

        return functional.normalize(only_tensor(outputs).flatten(1), dim=1)

    def postprocess(self, outputs: Outputs, frame: Frame) -> Prediction:
        """Take the vector."""
        return VectorPrediction(embedding=outputs)

    def outputs_of(self, prediction: Prediction) -> Outputs:
        """Return the vector."""
        assert isinstance(prediction, VectorPrediction)
        return prediction.embedding

    @property
    def num_values(self) -> int:
        """The length of the vector."""
        return self.dimension

    def max_difference(self, outputs: Floats, expected: Floats) -> float:
        """Return the largest distance between two vectors; NaN for NaN."""
        return float(np.sqrt(np.square(outputs - expected).sum(axis=-1)).max())

    def same_answer(self, prediction: Prediction, other: Prediction) -> bool:
        """Return whether both vectors have nearly the same direction."""
        if not isinstance(prediction, VectorPrediction) or not isinstance(other, VectorPrediction):
            return False
        if prediction.embedding.shape != other.embedding.shape:
            return False
        return float(prediction.embedding @ other.embedding) >= _SAME

    def describe(self, prediction: Prediction) -> str | None:
        """Return the first numbers of the vector."""
        if not isinstance(prediction, VectorPrediction):
            return super().describe(prediction)
        return f"[{', '.join(f'{value:.3f}' for value in prediction.embedding[:3])}, …]"

    # --- evaluation ---

    @property
    def headline_names(self) -> tuple[str, ...]:
        """Recall at 1 and the accuracy of the neighbours' vote."""
        return self.metric_names

    def measured_names(self, targets: Tensor | None = None) -> tuple[str, ...]:
        """Return the names of all metrics; none if no label is that of two images."""
        if targets is not None and len(set(targets.tolist())) == len(targets):
            return ()
        return (*(f"recall_at_{k}" for k in RECALL_AT), "knn_accuracy")

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Compute recall at k and the accuracy of a vote of the 20 nearest of the other images.

        Images whose label no other image has are neighbours, and are not measured themselves.

        Raises:
            InputError: If no label is that of two images.
        """
        return {name: float(held.mean()) for name, held in self._held(outputs, targets)[1].items()}

    def weighted_metrics(self, outputs: Tensor, targets: Tensor) -> WeightedMetrics:
        """Resample the measured images among the same neighbours."""
        scores, held = self._held(outputs, targets)

        def metrics(weights: Floats) -> dict[str, Floats]:
            own = weights[:, scores.positions]
            return {name: weighted_mean(held[name], own) for name in self.headline_names}

        return metrics

    def _held(
        self, outputs: Tensor, targets: Tensor
    ) -> tuple[NeighborScores, dict[str, npt.NDArray[np.bool_]]]:
        """Return the scores, and by the name of each metric for which images it holds."""
        scores = score_neighbors(outputs.cpu().numpy(), targets.cpu().numpy())
        if not len(scores.positions):
            raise InputError(
                "Embeddings are measured by labels that several images have; here every image has "
                "a label of its own."
            )
        held = {f"recall_at_{k}": found for k, found in scores.found_at.items()}
        return scores, {**held, "knn_accuracy": scores.voted}

    def settings(self) -> dict[str, str]:
        """Return the length of the vectors."""
        return {"embedding": f"{self.dimension:,} numbers, of length 1"}

    def section(self, outputs: Tensor, targets: Tensor, metrics: Mapping[str, float]) -> Section:
        """Return a table of recall by the number of neighbours."""
        rows = [(f"{k}", metrics[f"recall_at_{k}"]) for k in RECALL_AT]
        headings = ("Nearest images", "Share of images with one of their label among them")
        return Section(tables=[Table("Recall", headings, rows)])

    def worst_mistakes(self, outputs: Tensor, targets: Tensor, count: int) -> list[Mistake]:
        """Return nothing: a vector is not wrong by itself."""
        return []

    # --- results ---

    @classmethod
    def result_types(cls) -> dict[str, pa.DataType]:
        """Return the vector, as a list.

        A list of fixed size would say more, but Arrow cannot read it back from Parquet where it is
        missing, as for a failed image.
        """
        import pyarrow as pa

        return {"embedding": pa.list_(pa.float32())}

    def result_row(self, prediction: Prediction, top_k: int) -> dict[str, Any]:
        """Return the vector."""
        return {"embedding": self.outputs_of(prediction)}

    def response(
        self, prediction: Prediction, *, top_k: int, threshold: float | None
    ) -> dict[str, Any]:
        """Return the vector as a list of numbers."""
        return {"embedding": self.outputs_of(prediction).tolist()}

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """Return the vector."""
        return (TensorSpec("embedding", "FP32", (-1, self.dimension)),)

    def tensors(self, predictions: Sequence[Prediction | None]) -> list[NamedTensor]:
        """Return the vectors; NaN for a failed image."""
        failed = np.full(self.dimension, np.nan, np.float32)
        rows = [failed if one is None else self.outputs_of(one) for one in predictions]
        values = np.stack(rows) if rows else np.empty((0, self.dimension), np.float32)
        return [number_tensor("embedding", values)]


_NOT_TRAINED = (
    "An embedding is not trained: train a classifier, and name features:MODEL where a model is "
    "named, which gives the features before its last layer."
)
