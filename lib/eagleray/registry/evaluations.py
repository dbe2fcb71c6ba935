"""Keeps the evaluations of versions with their MLflow runs."""

from __future__ import annotations

from pydantic import ValidationError

from eagleray.core.errors import InputError
from eagleray.core.json_limits import parse_json
from eagleray.core.limits import MAX_RECORD_BYTES, RECORD_JSON
from eagleray.core.validation import first_validation_error
from eagleray.evaluation.predictions import MAX_PREDICTION_BYTES, ImagePredictions
from eagleray.evaluation.record import EvaluationRecord
from eagleray.io import storage
from eagleray.registry.artifacts import RunArtifacts
from eagleray.registry.versions import ModelVersion
from eagleray.tasks import Task

__all__ = ["read_evaluations", "read_predictions", "write_evaluation"]

EVALUATIONS_ARTIFACT = "evaluations"


def write_evaluation(
    artifacts: RunArtifacts,
    version: ModelVersion,
    record: EvaluationRecord,
    predictions: ImagePredictions | None = None,
) -> None:
    """Keep an evaluation with the version's run, replacing one on the same images.

    Predictions that are too large are not kept.

    Raises:
        InputError: If it is of another package, or the version has no run.
    """
    if record.package_digest != version.digest:
        raise InputError(
            f"The evaluation is of package {record.package_digest[:12]}, and "
            f"{version.reference} is {version.digest[:12]}; evaluate {version.reference}."
        )
    if version.run_id is None:
        raise InputError(
            f"{version.reference} has no MLflow run that could keep its evaluations; register "
            "its package again."
        )
    stem = f"{record.data_digest}-{record.package_digest}"
    content = predictions.to_parquet() if predictions is not None else None
    if content is not None:  # before the record, so that the record of an evaluation is the last
        artifacts.write_file(version.run_id, EVALUATIONS_ARTIFACT, f"{stem}.parquet", content)
    text = record.model_dump_json(indent=2)
    artifacts.write(version.run_id, f"{EVALUATIONS_ARTIFACT}/{stem}.json", text)


def read_predictions(
    artifacts: RunArtifacts, version: ModelVersion, data_digest: str, task: Task
) -> ImagePredictions | None:
    """Return the predictions of an evaluation, if they were kept.

    Args:
        artifacts: The artifacts of the runs.
        version: The evaluated version.
        data_digest: Digest of the images.
        task: The version's task.

    Raises:
        InputError: If they cannot be read.
    """
    if version.run_id is None:
        return None
    name = f"{data_digest}-{version.digest}.parquet"
    if f"{EVALUATIONS_ARTIFACT}/{name}" not in artifacts.names(
        version.run_id, EVALUATIONS_ARTIFACT
    ):
        return None
    folder = f"{artifacts.folder(version.run_id)}/{EVALUATIONS_ARTIFACT}"
    content = artifacts.read(folder, name, limit=2 * MAX_PREDICTION_BYTES)
    try:
        return ImagePredictions.from_parquet(content, task)
    except ValueError as error:
        raise InputError(
            f"{name} of run {version.run_id} has no valid predictions ({error}); remove it and "
            f"evaluate {version.reference} again."
        ) from None


def read_evaluations(artifacts: RunArtifacts, version: ModelVersion) -> list[EvaluationRecord]:
    """Return the evaluations of a version, newest first.

    Raises:
        InputError: If one of them cannot be read.
    """
    if version.run_id is None:
        return []
    records = []
    folder = f"{artifacts.folder(version.run_id)}/{EVALUATIONS_ARTIFACT}"
    for path in artifacts.names(version.run_id, EVALUATIONS_ARTIFACT):
        if not path.endswith(f"-{version.digest}.json"):
            continue
        try:
            content = artifacts.read(folder, storage.name_of(path), limit=MAX_RECORD_BYTES)
            parse_json(content, RECORD_JSON)
            records.append(EvaluationRecord.model_validate_json(content))
        except ValueError as error:
            fault = first_validation_error(error) if isinstance(error, ValidationError) else error
            raise InputError(
                f"{path} of run {version.run_id} is not a valid evaluation ({fault}); remove it "
                f"and evaluate {version.reference} again."
            ) from None
    return sorted(records, key=lambda record: record.created, reverse=True)
