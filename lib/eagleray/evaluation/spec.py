"""The specification of an evaluation: a model, labelled images, and what the model must reach."""

from __future__ import annotations

from eagleray.core.spec import Names, Texts, spec_field
from eagleray.data.spec import DATA, LabelledFields
from eagleray.inference.tile_fields import TileFields
from eagleray.io import storage
from eagleray.io.spec_fields import ReadFields

__all__ = ["EvaluateSpec"]

MODEL, REPORT = "Model", "Report"


class EvaluateSpec(ReadFields, TileFields, LabelledFields):
    """An evaluation of a model on labelled images."""

    model: str = spec_field(
        ...,
        MODEL,
        "Model: NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE.",
        names=Names.MODEL,
    )
    current: str | None = spec_field(
        None,
        MODEL,
        "Model that KPIs such as `accuracy >= current` compare with.",
        names=Names.MODEL,
    )
    kpi: str | None = spec_field(
        None,
        MODEL,
        "File of the KPIs that the model must reach; see evaluation.md.",
        names=Names.INPUT,
    )
    split: str | None = spec_field(
        None,
        DATA,
        "Split to evaluate on, train, validation or test: of a run's split.parquet, or of data "
        "that have splits of their own.",
    )
    slice: Texts = spec_field(
        (), REPORT, "Column to slice the metrics by; default: all columns with few values."
    )
    output: str | None = spec_field(
        None,
        REPORT,
        "HTML file of the report; default: in the home folder's evaluations.",
        names=Names.OUTPUT,
    )

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments that measure the same images in the same way, in any working folder."""
        words = [storage.absolute(self.data)]
        for name in (*LabelledFields.model_fields, "split", *TileFields.model_fields):
            value = getattr(self, name)
            if name == "data" or value == type(self).model_fields[name].get_default():
                continue
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
                continue
            for item in value if isinstance(value, tuple) else (value,):
                words += [option, str(item)]
        return tuple(words)
