"""The specification of a quantization: a version, calibration images, and what it may cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eagleray.core.spec import spec_field
from eagleray.io.spec_fields import S3Fields

__all__ = ["MIN_IMAGES", "QuantizeSpec"]

MIN_IMAGES = 32
"""Number of calibration images that a quantization needs at least."""

MODEL, CALIBRATION = "Model", "Calibration"


class QuantizeSpec(S3Fields):
    """A quantization of a registered version."""

    model: str = spec_field(
        ..., MODEL, "Registered version to quantize: NAME@ALIAS or NAME/VERSION."
    )
    alias: str | None = spec_field(
        None, MODEL, "Alias that will point to the new version; default: none."
    )
    data: str | None = spec_field(
        None,
        CALIBRATION,
        "Optional images to calibrate on: a folder, a pattern, an archive, a table or a URI; "
        "default: training images of the run that made the version.",
    )
    column: str | None = spec_field(
        None, CALIBRATION, "Column of the images or their locations, if the data are a table."
    )
    num_images: Annotated[int, Field(ge=MIN_IMAGES, le=10_000)] = spec_field(
        300, CALIBRATION, "Number of calibration images."
    )
    max_drop: Annotated[float, Field(ge=0.0, le=1.0)] = spec_field(
        0.005,
        CALIBRATION,
        "Largest loss on held-out images, of accuracy or the task's first metric, for which all "
        "layers are in int8; above it, some are kept in float32.",
    )
    seed: int = spec_field(0, CALIBRATION, "Seed of the choice of calibration images.", ge=0)
