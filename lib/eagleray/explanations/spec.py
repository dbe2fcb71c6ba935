"""The specification of explanations: a model, images, and the label to explain."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from eagleray.core.spec import Names, spec_field
from eagleray.io.spec_fields import ReadFields

__all__ = ["ExplainSpec"]

INPUT, REPORT = "Input", "Report"


class ExplainSpec(ReadFields):
    """Explanations of what a classifier predicts for images."""

    model: str = spec_field(
        ...,
        INPUT,
        "Classifier: NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE.",
        names=Names.MODEL,
    )
    images: str = spec_field(
        ..., INPUT, "Folder, pattern, table, archive or image.", names=Names.INPUT
    )
    column: str | None = spec_field(
        None, INPUT, "Table column that holds the locations, or the images.", min_length=1
    )
    max_images: Annotated[int, Field(ge=1, le=1000)] = spec_field(
        100, INPUT, "Maximum number of images; of more, some that are evenly spread are taken."
    )
    label: str | None = spec_field(
        None, REPORT, "Label to explain in every image; default: the predicted one of each."
    )
    output: str = spec_field(
        ..., REPORT, "HTML file of the page; an existing one is replaced.", names=Names.OUTPUT
    )

    @model_validator(mode="after")
    def _output_is_a_page(self) -> Self:
        if not self.output.lower().endswith((".html", ".htm")):
            raise ValueError(f"output is an HTML page: {self.output!r} must end in .html")
        return self
