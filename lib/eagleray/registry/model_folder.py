"""Writes a version's folder in MLflow's model format: `MLmodel` around the package.

MLmodel                     loader, signature, and the package's digest
requirements.txt, …         distributions that the model needs, with versions
input_example.json, …       a golden image
package/                    the model package, as it was verified
"""

from __future__ import annotations

import json
import warnings
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

from eagleray.core.extensions import ENTRY_POINT_GROUP
from eagleray.models.architectures import TIMM_PREFIX
from eagleray.models.attributes import NumberAttribute
from eagleray.models.package import ModelPackage, write_package
from eagleray.registry import pyfunc
from eagleray.registry.versions import MODEL_ARTIFACT, PACKAGE_ARTIFACT

__all__ = ["write_model_folder"]

_DISTRIBUTIONS = ("eagleray", "mlflow", "torch", "torchvision")


_HISTORY_TAG = "mlflow.log-model.history"


def write_model_folder(
    package: ModelPackage, folder: str, *, run_id: str | None = None
) -> dict[str, str]:
    """Write a package and what MLflow needs to load it.

    Args:
        package: The model package.
        folder: A local folder that does not exist yet.
        run_id: ID of the MLflow run that will have the folder as its artifact `model`.

    Returns:
        Tags of the run with which MLflow's tables show the model.
    """
    import mlflow.pyfunc
    from mlflow.models import Model

    model = Model(artifact_path=MODEL_ARTIFACT, run_id=run_id)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a package without golden images, thus no example
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=model,
            loader_module=pyfunc.__name__,
            model_config=dict(pyfunc.MODEL_CONFIG),
            signature=_signature(package),
            input_example=_input_example(package),
            pip_requirements=_requirements(package),
            metadata={"package_digest": package.digest, "task": package.task.name},
        )
    write_package(package, str(Path(folder) / PACKAGE_ARTIFACT))
    return {_HISTORY_TAG: json.dumps([model.get_tags_dict()])}


def _signature(package: ModelPackage) -> Any:
    """Return the model's columns: an image and its attributes in, a prediction out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array, Map

    outputs = {
        "score": DataType.double,
        "value": DataType.double,
        "outlier_score": DataType.double,
        "labels": Array(DataType.string),
        "probabilities": Map(DataType.double),
        **dict.fromkeys(("label", "status", "reason", "message"), DataType.string),
    }
    attributes = [
        # Whole numbers are valid too, which MLflow does not take for a column of doubles.
        ColSpec(AnyType() if isinstance(one, NumberAttribute) else DataType.string, one.name)
        for one in package.attributes
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, pyfunc.IMAGE_COLUMN), *attributes]),
        outputs=Schema(
            [
                ColSpec(outputs.get(name, AnyType()), name, required=name == "status")
                for name in pyfunc.result_columns(package)
            ]
        ),
    )


def _input_example(package: ModelPackage) -> Any:
    """Return a table with the smallest golden image, if the package has one."""
    import pandas as pd

    golden = min(package.golden.images, key=lambda one: len(package.files[one.file]), default=None)
    if golden is None:
        return None
    return pd.DataFrame(
        [{pyfunc.IMAGE_COLUMN: package.files[golden.file], **(golden.attributes or {})}]
    )


def _requirements(package: ModelPackage) -> list[str]:
    """Return the distributions that the model needs, with the versions of this process."""
    extensions = [point.dist for point in entry_points(group=ENTRY_POINT_GROUP)]
    names = [
        *_DISTRIBUTIONS,
        *(["openvino"] if package.manifest.has_graph else []),
        *(["timm"] if package.manifest.architecture.name.startswith(TIMM_PREFIX) else []),
        *sorted({dist.name for dist in extensions if dist is not None}),
    ]
    # Registries have no local versions, such as 2.11.0+cpu.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]
