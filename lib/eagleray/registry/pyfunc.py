"""Loads a version's package as an MLflow `python_function` model, for MLflow's own tools.

    model = mlflow.pyfunc.load_model("models:/flowers@production")
    model.predict(pandas.DataFrame({"image": ["rose.jpg", Path("tulip.jpg").read_bytes()]}))

The `MLmodel` of a version names this module as its loader, so nothing is unpickled. `mlflow models
predict` and `serve`, `mlflow.evaluate` and Spark UDFs load versions the same way.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagleray.core.errors import BadImageError, Reason, UnknownNameError
from eagleray.imaging import DecodedImage
from eagleray.imaging.probe import detect_format
from eagleray.io.fetch import fetch_image
from eagleray.models.package import ModelPackage, read_package
from eagleray.registry.versions import PACKAGE_ARTIFACT
from eagleray.tasks import Outcome, Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["IMAGE_COLUMN", "MODEL_CONFIG", "PyfuncModel", "result_columns"]

IMAGE_COLUMN = "image"
"""The column with the images; the others are attributes."""

MODEL_CONFIG = {"column": None, "device": "auto", "precision": "auto", "batch_size": None}
"""The keys of `model_config` that MLflow passes on, with their defaults."""

_SERVER_VARIABLE = "__pyfunc_model_path__"  # set in the processes of MLflow's model servers
_FAILURE = ("status", "reason", "message")


def _load_pyfunc(folder: str, model_config: Mapping[str, Any]) -> PyfuncModel:
    """Load the model; MLflow calls this function.

    Args:
        folder: The folder with `MLmodel`.
        model_config: `device`, `precision` and `batch_size` of the predictor, and `column` for the
            only column of the results, which MLflow's evaluation of classifiers needs.

    Raises:
        PackageError: If the package is refused.
        UnknownNameError: If the results have no such column.
        InputError: If the machine does not have the device.
    """
    package = read_package(str(Path(folder) / PACKAGE_ARTIFACT))
    return PyfuncModel(package, reads_paths=_SERVER_VARIABLE not in os.environ, **model_config)


class PyfuncModel:
    """A model package with the interface that MLflow expects of a loaded model.

    Args:
        package: The model package.
        reads_paths: Whether text may be the location of an image. Model servers take images
            themselves only, so that a request cannot read the server's files.
        column: The only column of the results; None for all of them.
        options: `device`, `precision` and `batch_size` of the predictor.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        reads_paths: bool = True,
        column: str | None = None,
        **options: Any,
    ) -> None:
        from eagleray.inference.predictor import Predictor  # imports PyTorch

        self._predictor = Predictor(package, **options)
        self._reads_paths = reads_paths
        self._columns = result_columns(package)
        if column is not None and column not in self._columns:
            raise UnknownNameError("column of the results", column, self._columns)
        self._column = column

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame | pd.Series[Any]:
        """Predict one image for each row.

        Args:
            rows: A column `image` with bytes, base64 text or locations, and a column for each
                attribute that the model takes.

        Returns:
            A row for each row, with the same index and the columns of `result_columns`, or the
            only column. A row whose image cannot be used has the status `failed` with a reason
            and a message.

        Raises:
            AttributeValueError: If an attribute is missing or not valid.
        """
        import pandas as pd

        predictor = self._predictor
        names = [attribute.name for attribute in predictor.package.attributes]
        given = [name for name in names if name in rows.columns]
        values = [
            {name: _without_nan(value) for name, value in row.items()}
            for row in rows[given].to_dict(orient="records")
        ]
        batches = predictor.predict_ahead(
            list(rows[IMAGE_COLUMN]),
            self._decode,
            num_threads=predictor.decode_threads,
            attributes=predictor.encode_attributes(values, len(rows)) if names else None,
        )
        results = [self._result(outcome) for batch in batches for outcome in batch]
        # Columns of objects keep None, which is null in JSON; numbers without gaps stay numbers.
        frame = pd.DataFrame(results, index=rows.index, columns=self._columns, dtype=object)
        for name in ("score", "value"):
            if name in frame and frame[name].notna().all():
                frame[name] = frame[name].astype(float)
        return frame if self._column is None else frame[self._column]

    def _decode(self, cell: object) -> DecodedImage | Outcome:
        try:
            return self._predictor.preprocess(self._read(cell))
        except BadImageError as error:
            return Outcome.from_error(error)

    def _read(self, cell: object) -> bytes:
        """Return the bytes of an image in a cell.

        Raises:
            BadImageError: If the cell has none.
        """
        if isinstance(cell, bytes | bytearray | memoryview):
            content = bytes(cell)
            # MLflow leaves base64 as it is in some forms of requests, and decodes it in others.
            return content if detect_format(content) else _from_base64(content) or content
        if isinstance(cell, os.PathLike):
            cell = os.fspath(cell)
        if isinstance(cell, str):
            decoded = _from_base64(cell)
            if decoded is not None:
                return decoded
            if self._reads_paths:
                return fetch_image(cell, self._predictor.package.contract)
            raise BadImageError(
                Reason.NOT_AN_IMAGE, "the text is not an image in base64; servers read no locations"
            )
        raise BadImageError(
            Reason.NOT_AN_IMAGE,
            f"an image is bytes, text in base64 or a location, not a {type(cell).__name__}",
        )

    def _result(self, outcome: Outcome) -> list[Any]:
        if outcome.prediction is None:
            assert outcome.failure is not None
            failure = outcome.failure
            known = {"status": "failed", "reason": failure.reason.value, "message": failure.message}
            return self._row(known)
        task = self._predictor.task
        members = task.response(outcome.prediction, top_k=len(task.labels), threshold=None)
        scores = {entry["label"]: entry["score"] for entry in members.get("top", ())}
        probabilities = {label: scores[label] for label in task.labels if label in scores}
        return self._row({"status": "ok", **members, "probabilities": probabilities})

    def _row(self, members: Mapping[str, Any]) -> list[Any]:
        return [members.get(name) for name in self._columns]


def result_columns(package: ModelPackage) -> list[str]:
    """Return the columns of a model's results, the prediction first."""
    task = package.task
    held = {field.name for field in task.result_fields()}
    own = [name for name in task.result_types() if name in held - Task.result_types().keys()]
    if not task.labels:
        value = ["value"] if "value" in task.result_types() else []
        return [*value, *own, *_FAILURE]
    several = ["labels"] if task.has_many_labels else []
    return ["label", "score", *several, "probabilities", *own, *_FAILURE]


def _from_base64(text: str | bytes) -> bytes | None:
    """Return the image in a text, or None if the text is something else, such as a location."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if detect_format(content) is not None else None


def _without_nan(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value
