"""The specification of an evaluation: a model, labelled images, and what the model must reach."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from eagleray.core.spec import Spec, Texts, spec_field
from eagleray.data.spec import DATA, LabelledFields
from eagleray.io import storage
from eagleray.io.spec_fields import S3Fields

__all__ = ["EvaluateSpec", "data_arguments"]

MODEL, REPORT = "Model", "Report"


class EvaluateSpec(S3Fields, LabelledFields):
    """An evaluation of a model on labelled images."""

    model: str = spec_field(
        ..., MODEL, "Model: NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE."
    )
    current: str | None = spec_field(
        None, MODEL, "Model that KPIs such as `accuracy >= current` compare with."
    )
    kpi: str | None = spec_field(
        None, MODEL, "File of the KPIs that the model must reach; see evaluation.md."
    )
    split: str | None = spec_field(
        None,
        DATA,
        "Split to evaluate on, train, validation or test: of a run's split.parquet, or of data "
        "that have splits of their own.",
    )
    split_file: str | None = spec_field(
        None,
        DATA,
        "Split file that says which of the data are in the split that --split names, such as a "
        "run's split.parquet.",
    )
    slice: Texts = spec_field(
        (), REPORT, "Column to slice the metrics by; default: all columns with few values."
    )
    output: str | None = spec_field(
        None, REPORT, "HTML file of the report; default: in the home folder's evaluations."
    )

    @model_validator(mode="after")
    def _names_a_split(self) -> Self:
        if self.split_file is not None and self.split is None:
            raise ValueError("split_file needs split: name train, validation or test")
        return self

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that name the same images, in any working folder."""
        return data_arguments(self, self.data, split=self.split, split_file=self.split_file)


def data_arguments(
    spec: Spec, data: str, *, split: str | None = None, split_file: str | None = None
) -> tuple[str, ...]:
    """Return the arguments of `eagleray evaluate` that name images, in any working folder.

    Args:
        spec: Specification with the fields of `LabelledFields`, which say how the data are read.
        data: Location of the data.
        split: Split to evaluate on, if any.
        split_file: File that divides the data, if any.
    """
    words = [storage.absolute(data)]
    options = {
        **{name: getattr(spec, name) for name in LabelledFields.model_fields if name != "data"},
        "split": split,
        "split_file": None if split_file is None else storage.absolute(split_file),
    }
    for name, value in options.items():
        for text in value if isinstance(value, tuple) else (value,):
            if text is not None:
                words += [f"--{name.replace('_', '-')}", text]
    return tuple(words)
