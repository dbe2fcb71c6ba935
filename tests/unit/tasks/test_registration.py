"""Tasks by name, and packages made before tasks were registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from eagleray.core.errors import PackageError, UnknownNameError
from eagleray.models.manifest import manifest_digest, parse_manifest
from eagleray.tasks import Regression, register_task, task_class, task_names

MANIFESTS = Path(__file__).with_name("manifests")
DIGESTS = {
    "binary": "f5c38ae6ebbc996db9109aab74a70090ea5a3e4e2ff684b65b9afa0b8112ce71",
    "multiclass": "b6824c71bca49ff81f932f1940f299034dc428117f45ce71cc0a6be666d0431f",
    "multilabel": "7db7b8de973a15f841db98c2735963a77cb240b9f69edf8003a7f1c1ec9b46c9",
    "regression": "acd9579a35cf862c38df52c83f81d4db8581be31804d1f90e11644b18b73f88f",
}
"""Of packages whose `model.json` and digest the code before registrations made."""


@pytest.mark.parametrize("name", DIGESTS)
def test_a_package_made_before_keeps_its_json_and_its_digest(name: str) -> None:
    text = (MANIFESTS / f"{name}.json").read_text()
    manifest = parse_manifest(text.encode(), "model.json")
    assert type(manifest.task) is task_class(name)
    assert manifest_digest(manifest) == DIGESTS[name]
    assert manifest.model_dump_json(indent=2) == text


def test_the_tasks_have_their_names() -> None:
    assert {"binary", "multiclass", "multilabel", "regression"} <= set(task_names())
    assert task_class("regression") is Regression
    with pytest.raises(UnknownNameError, match=r"No task is named 'multi_class'. Nearest: multicl"):
        task_class("multi_class")


def test_a_name_cannot_be_taken_twice() -> None:
    class Other(Regression):
        name: Literal["regression"] = "regression"

    with pytest.raises(ValueError, match="another task named 'regression'"):
        register_task(Other)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ('{"name": "captioning"}', "task: No task is named 'captioning'"),
        ('{"labels": ["a", "b"]}', "task: it has no name"),
        ("[]", "task: it has no name"),
        ('{"name": "binary", "labels": ["a", "b"], "top": 5}', "the unknown field 'task.top'"),
        ('{"name": "binary", "labels": ["a"]}', "task.labels.1 is required"),
    ],
)
def test_a_manifest_with_a_task_that_cannot_be_is_one_sentence(task: str, expected: str) -> None:
    text = (MANIFESTS / "binary.json").read_text()
    start, end = text.index('{\n    "name": "binary"'), text.index(',\n  "architecture"')
    with pytest.raises(PackageError) as caught:
        parse_manifest((text[:start] + task + text[end:]).encode(), "model.json")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tasks_are_imported_without_pytorch_and_scikit_learn() -> None:
    code = "import sys, eagleray.tasks; print([n for n in {!r} if n in sys.modules])"
    heavy: Any = ("torch", "sklearn", "pyarrow", "ray", "matplotlib")
    answer = subprocess.run(
        [sys.executable, "-c", code.format(heavy)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
