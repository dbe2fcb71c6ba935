"""Fields of specifications that name labelled data, and the specification of an inspection."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from eagleray.core.spec import Names, Spec, Texts, spec_field
from eagleray.data.label_format import MAX_INVALID
from eagleray.imaging import NAMED_CONTRACTS
from eagleray.io.spec_fields import ReadFields
from eagleray.tasks import TaskName

__all__ = ["DATA", "Fraction", "InspectSpec", "LabelledFields", "MaxInvalid", "SplitFields"]

DATA, REPORT = "Data", "Report"
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
MaxInvalid = Annotated[float, Field(ge=0.0, le=1.0)]


class LabelledFields(Spec):
    """Labelled images: where they are, and which columns of a table say what."""

    data: str = spec_field(
        ...,
        DATA,
        "Folder with one subfolder per class, a table, or a label format such as COCO.",
        names=Names.INPUT,
    )
    column: str | None = spec_field(None, DATA, "Column of the image locations.")
    label_column: str | None = spec_field(None, DATA, "Column of the labels.")
    label_columns: Texts = spec_field((), DATA, "Column of 0 and 1 that is named after its label.")
    separator: str | None = spec_field(
        None, DATA, "Separator of several labels in one column, if not a |."
    )
    max_invalid: MaxInvalid = spec_field(
        MAX_INVALID,
        DATA,
        "Maximum fraction of invalid objects, and of images with invalid labels.",
    )


class SplitFields(LabelledFields):
    """Labelled images that are divided into train, validation and test."""

    task: TaskName = spec_field(
        "multiclass",
        DATA,
        "Prediction task: binary, multiclass, multilabel, regression, detection, semantic, "
        "instance, panoptic, or "
        "one of an extension.",
    )
    group_column: str | None = spec_field(
        None, DATA, "Column whose equal values stay in one split, such as near-duplicates."
    )
    test_data: str | None = spec_field(
        None, DATA, "Separate test set, in the form of the data.", names=Names.INPUT
    )
    validation_fraction: Fraction = spec_field(
        0.1, DATA, "Fraction of the data for validation, by which the best epoch is chosen."
    )
    test_fraction: Fraction = spec_field(
        0.2, DATA, "Fraction of the data for testing, which is not used before the end."
    )
    seed: int = spec_field(0, DATA, "Seed of everything random.", ge=0)


class InspectSpec(ReadFields, SplitFields):
    """An inspection of labelled images."""

    output: str = spec_field(
        ..., REPORT, "HTML file of the report; an existing one is replaced.", names=Names.OUTPUT
    )
    contract: str | None = spec_field(
        None,
        DATA,
        f"Image contract: {', '.join(NAMED_CONTRACTS)}; default: fast, and letterbox, as in "
        "training, for tasks with objects.",
    )
    keep_duplicates_together: bool = spec_field(
        False, DATA, "Keep duplicates, exact or near, in one split."
    )
    split_file: str | None = spec_field(
        None,
        REPORT,
        "New Parquet file that says which image is in which split.",
        names=Names.OUTPUT,
    )

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Self:
        test_fraction = 0.0 if self.test_data else self.test_fraction
        if self.validation_fraction + test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction leave nothing to train on; lower one"
            )
        if not self.output.lower().endswith((".html", ".htm")):
            raise ValueError(f"output is an HTML page: {self.output!r} must end in .html")
        if self.split_file and not self.split_file.lower().endswith((".parquet", ".pq")):
            raise ValueError(
                f"split_file is a Parquet file: {self.split_file!r} must end in .parquet"
            )
        return self
