"""The specification of an evaluation."""

from __future__ import annotations

from pathlib import Path

from eagleray.evaluation.spec import EvaluateSpec


def test_arguments_are_texts_that_name_the_same_images(tmp_path: Path) -> None:
    data = str(tmp_path)
    plain = EvaluateSpec.make({"data": data, "model": "m/1"})
    assert plain.arguments == (data,)
    changed = {"label_columns": ["a", "b"], "max_invalid": 0.25, "split": "test"}
    spec = EvaluateSpec.make({"data": data, "model": "m/1", **changed})
    words = ("--label-columns", "a", "--label-columns", "b", "--max-invalid", "0.25")
    assert spec.arguments == (data, *words, "--split", "test")
