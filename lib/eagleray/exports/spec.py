"""The specification of an export: a model, a format, and the images that it is compared on."""

from __future__ import annotations

from eagleray.core.spec import spec_field
from eagleray.io.spec_fields import S3Fields

__all__ = ["PACKAGE_FORMAT", "ExportSpec"]

PACKAGE_FORMAT = "package"

EXPORT, COMPARISON, LIMITS = "Export", "Comparison", "Limits"


class ExportSpec(S3Fields):
    """An export of a model to the format of another runtime."""

    model: str = spec_field(
        ..., EXPORT, "Model: NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE."
    )
    output: str = spec_field(..., EXPORT, "New folder; for a package also a URI.")
    format: str = spec_field(
        PACKAGE_FORMAT,
        EXPORT,
        "package, onnx, openvino, executorch, litert, coreml, or one of an extension.",
    )
    data: str | None = spec_field(
        None,
        COMPARISON,
        "Evaluation images: a folder, a pattern, an archive or a table; default: the test split "
        "of the version's training run.",
    )
    column: str | None = spec_field(None, COMPARISON, "Column of the image locations in a table.")
    max_images: int = spec_field(
        200, COMPARISON, "Number of evaluation images, evenly spread over the data.", ge=1
    )
    max_seconds: int = spec_field(
        1800, LIMITS, "Seconds after which a conversion, or a comparison, is ended.", ge=1
    )
    max_memory_gb: float = spec_field(
        8.0, LIMITS, "Memory at which a conversion, or a comparison, is ended.", gt=0
    )
