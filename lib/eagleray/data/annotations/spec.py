"""The specification of a conversion of labels from one format to another."""

from __future__ import annotations

from typing import Literal

from eagleray.core.spec import Names, spec_field
from eagleray.data.label_format import MAX_INVALID
from eagleray.data.spec import DATA, MaxInvalid
from eagleray.io.spec_fields import ReadFields

__all__ = ["ConvertSpec", "LabelFormatName"]

LabelFormatName = Literal["coco", "voc", "yolo", "masks", "instances", "panoptic"]
RESULTS = "Results"


class ConvertSpec(ReadFields):
    """A conversion of labels of objects."""

    data: str = spec_field(
        ...,
        DATA,
        "Folder in a label format, file of COCO's JSON, or table of images.",
        names=Names.INPUT,
    )
    output: str = spec_field(..., RESULTS, "New folder or URI for the labels.", names=Names.OUTPUT)
    to: LabelFormatName = spec_field(
        ..., RESULTS, "Format to write: coco, voc, yolo, masks, instances or panoptic."
    )
    copy_images: bool = spec_field(False, RESULTS, "Copy the images beside the labels.")
    column: str | None = spec_field(None, DATA, "Column of the image locations.")
    label_column: str | None = spec_field(None, DATA, "Column of the labels.")
    max_invalid: MaxInvalid = spec_field(
        MAX_INVALID, DATA, "Maximum fraction of invalid objects, and of images with invalid labels."
    )
