"""Environments of export formats: pinned, verified, and refused with a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.exports.base import EXPORTERS, REQUIREMENTS
from eagleray.exports.environment import environment_folder, make_environment

FILES = sorted(REQUIREMENTS.glob("*.txt"))
PIN = re.compile(r"([a-z0-9-]+==[A-Za-z0-9.]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_requirements_are_pins_with_hashes_and_nothing_else(file: Path) -> None:
    text = file.read_text()
    assert PIN.findall(text)
    assert PIN.sub("", text) == ""


def test_every_file_of_requirements_is_of_a_format() -> None:
    own = {exporter.requirements for exporter in map(EXPORTERS.get, ("onnx", "openvino", "coreml"))}
    assert own == {REQUIREMENTS / "onnx.txt", None, REQUIREMENTS / "coreml.txt"}
    assert {file.stem for file in FILES} == {"onnx", "executorch", "litert", "coreml"}


def test_other_pins_are_another_environment(tmp_path: Path) -> None:
    file = tmp_path / "pins.txt"
    file.write_text("one==1\n")
    first = environment_folder(file, tmp_path)
    assert first == environment_folder(file, tmp_path)
    file.write_text("one==2\n")
    assert environment_folder(file, tmp_path) != first


def test_packages_that_cannot_be_had_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(InputError, match=r"onnx\.txt cannot be installed .*package index"):
        make_environment(REQUIREMENTS / "onnx.txt", tmp_path)
    left = [path for path in (tmp_path / "environments").iterdir() if path.suffix != ".lock"]
    assert left == []
