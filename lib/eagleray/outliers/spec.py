"""The specification of outlier statistics: a version, and the images that they are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from eagleray.core.spec import spec_field
from eagleray.io.spec_fields import S3Fields

__all__ = ["MIN_IMAGES", "OutliersSpec"]

MIN_IMAGES = 32
"""Number of images that statistics, and their levels, need at least."""

MODEL, IMAGES = "Model", "Images"


class OutliersSpec(S3Fields):
    """Outlier statistics of a registered version."""

    model: str = spec_field(
        ..., MODEL, "Registered version of a classifier: NAME@ALIAS or NAME/VERSION."
    )
    alias: str | None = spec_field(
        None, MODEL, "Alias that will point to the new version; default: none."
    )
    data: str | None = spec_field(
        None,
        IMAGES,
        "Optional images like those of the training: a folder, a pattern, an archive, a table or a "
        "URI; default: training and validation images of the run that made the version.",
    )
    column: str | None = spec_field(
        None, IMAGES, "Column of the images or their locations, if the data are a table."
    )
    num_images: Annotated[int, Field(ge=MIN_IMAGES, le=1_000_000)] = spec_field(
        10_000, IMAGES, "Maximum number of training images, and of validation images."
    )
    seed: int = spec_field(0, IMAGES, "Seed of the choice of images.", ge=0)
