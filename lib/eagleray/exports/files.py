"""Renders the files beside an exported model: its input and output, the proof, and examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagleray.exports.base import IMAGES, Exporter
from eagleray.exports.compare import Comparison
from eagleray.models.graph import takes_one_image
from eagleray.models.package import ModelPackage

__all__ = ["ExportFacts", "comparison_rows", "render_files"]

_EXAMPLES = Path(__file__).with_name("examples")


@dataclass(frozen=True)
class ExportFacts:
    """What is known of an export.

    Attributes:
        reference: NAME/VERSION of the model, or the reference that the user wrote.
        package: The model package.
        exporter: The exporter.
        size: Bytes of the exported files.
        comparison: The comparison; None if the runtime cannot run on this machine.
        num_golden: Number of golden images in the comparison.
        runtime: What ran the exported model, with its version.
        milliseconds: Median time of an image in the runtime, alone.
        inspected: What was checked instead of, or beside, a comparison.
        notes: Sentences on the images.
    """

    reference: str
    package: ModelPackage
    exporter: Exporter
    size: int
    comparison: Comparison | None
    num_golden: int
    runtime: str
    milliseconds: float | None
    inspected: Mapping[str, str]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the facts for scripts, and for `comparison.json`."""
        compared = self.comparison
        return {
            "model": self.reference,
            "package": self.package.digest,
            "format": self.exporter.name,
            "bytes": self.size,
            "runtime": self.runtime or None,
            "milliseconds": self.milliseconds,
            "golden_images": self.num_golden,
            "inspected": dict(self.inspected),
            "notes": list(self.notes),
            "comparison": None if compared is None else compared.as_json(),
            "not_compared": self.exporter.cannot_run,
        }


def comparison_rows(facts: ExportFacts) -> list[tuple[str, str]]:
    """Return the table of an export: names and values."""
    rows = [("size", f"{facts.size:,} bytes"), *facts.inspected.items()]
    compared = facts.comparison
    if compared is None:
        why = facts.exporter.cannot_run
        return [*rows, ("comparison", f"none: {facts.exporter.title} {why}")]
    tolerance, relative = compared.tolerance, compared.relative_difference
    shown = "" if relative is None else f", {relative:.2%} of their variation between images"
    num_evaluated = len(compared.images) - facts.num_golden
    return [
        *rows,
        ("runtime", facts.runtime),
        ("time per image", f"{facts.milliseconds:.2f} ms (median, one image at a time)"),
        ("images", f"{facts.num_golden:,} golden, {num_evaluated:,} evaluation"),
        (
            "maximum difference",
            f"{compared.max_difference:.2e} (allowed: {tolerance.max_difference:.2e})",
        ),
        ("mean difference", f"{compared.mean_difference:.2e}{shown}"),
        *_similarity_rows(compared),
        ("same prediction", f"{compared.agreement:.2%}"),
        ("worst image", compared.worst.uri),
    ]


def _similarity_rows(compared: Comparison) -> list[tuple[str, str]]:
    """Return how alike the predictions are, for a task that says so."""
    if compared.similarity is None:
        return []
    needed = compared.tolerance.min_similarity
    name = f"mean {compared.similarity_name}"
    return [(name, f"{compared.similarity:.4f} (needed: {needed:g})")]


def render_files(facts: ExportFacts) -> dict[str, str]:
    """Return the text files of an export by name."""
    package, exporter = facts.package, facts.exporter
    files = {
        "README.md": _readme(facts),
        "contract.json": _json(_contract(package, exporter)),
        "model.json": _json(_model(facts)),
        "comparison.json": _json(facts.as_json()),
        "runtime.py": exporter.runtime.read_text(),
        "predict.py": _example(facts),
        **exporter.examples(package),
    }
    if package.task.labels:
        files["labels.txt"] = "".join(f"{label}\n" for label in package.task.labels)
    return files


def _example(facts: ExportFacts) -> str:
    """Return the program that predicts image files: what it prints depends on the task."""
    parts = (_EXAMPLES / f"{part}.py.txt" for part in facts.package.task.export_example)
    text = (_EXAMPLES / "predict.py.txt").read_text()
    text = text.replace("REQUIREMENTS", _install_words(facts))
    return text.replace("MAIN", "".join(part.read_text() for part in parts))


def _install_words(facts: ExportFacts) -> str:
    resizing = "opencv-python-headless" if "opencv" in facts.package.contract.resampler else ""
    return " ".join(filter(None, [facts.exporter.also_needed, "numpy pillow", resizing]))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _contract(package: ModelPackage, exporter: Exporter) -> dict[str, Any]:
    contract = package.contract
    return {
        "input": {"name": IMAGES, "takes": exporter.takes, "shape": contract.shape},
        "normalised": "in the model",
        "contract": contract.model_dump(mode="json"),
        "digest": contract.digest,
    }


def _model(facts: ExportFacts) -> dict[str, Any]:
    package = facts.package
    return {
        "model": facts.reference,
        "package": package.digest,
        "file": facts.exporter.file,
        "batch": _batch(facts),
        "labels": list(package.task.labels),
        "task": package.task.model_dump(mode="json"),
        **_outputs(package),
    }


def _outputs(package: ModelPackage) -> dict[str, Any]:
    """Return the description of the output, or of several."""
    described = [
        {
            "name": one.name,
            "type": "float32",
            "shape": list(one.shape),
            "meaning": one.meaning,
        }
        for one in package.task.describe_exported(package.contract)
    ]
    return {"output": described[0]} if len(described) == 1 else {"outputs": described}


def _readme(facts: ExportFacts) -> str:
    package, exporter = facts.package, facts.exporter
    height, width = package.contract.size
    settings = "\n".join(
        f"- {name}: {_plain(value)}" for name, value in package.task.settings().items()
    )
    table = "\n".join(f"| {name} | {_plain(value)} |" for name, value in comparison_rows(facts))
    notes = " ".join(facts.notes) if facts.comparison is not None else ""
    outputs = "\n\n".join(_readme_outputs(package))
    return f"""# {facts.reference} for {exporter.title}

`{exporter.file}` is the model of the package `{package.digest[:12]}`.

**Input** `{IMAGES}`: {exporter.takes}, of {height} x {width} pixels, {package.contract.color}; \
{_batches(facts)}. Normalisation is part of the model; `contract.json` says how an \
image file is decoded, resized and cropped before it.

{outputs}

{settings}

## Comparison with the original

| | |
|---|---|
{table}

{_verdict(facts)} {notes} `comparison.json` has every image.

## Example

```
pip install {_install_words(facts)}
python predict.py photo.jpg
```
"""


def _readme_outputs(package: ModelPackage) -> list[str]:
    """Return a paragraph for each output, and one on what is left to do with them, if anything."""
    texts = []
    for one in package.task.describe_exported(package.contract):
        length = (
            f"{one.shape[0]} values"
            if len(one.shape) == 1
            else f"of the shape (N, {', '.join(map(str, one.shape))})"
        )
        texts.append(f"**Output** `{one.name}`: float32, {length}. {one.meaning}")
    return [*texts, *filter(None, [package.task.export_note])]


def _batch(facts: ExportFacts) -> str:
    """Return the sizes of batches that the exported model takes: `any` or `1`."""
    graph = facts.package.graph
    return "1" if graph is not None and takes_one_image(graph) else facts.exporter.batch


def _batches(facts: ExportFacts) -> str:
    return "batches of any size" if _batch(facts) == "any" else "one image at a time"


def _verdict(facts: ExportFacts) -> str:
    if facts.comparison is None:
        return (
            "The exported model was **not** compared with the original, as its runtime "
            f"{facts.exporter.cannot_run}; the table shows what could be checked. Nor were the "
            "examples run."
        )
    return (
        "The exported model was loaded in its runtime, and its outputs lie within the tolerance of "
        "those of the original."
    )


def _plain(text: str) -> str:
    """Return text for Markdown: on one line, and in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
