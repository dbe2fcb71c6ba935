"""The documented program that loads a package without Eagleray predicts what Eagleray predicts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.imaging import ImageContract
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import architecture_for, default_contract
from eagleray.models.building import build
from eagleray.models.package import create_package, write_package
from eagleray.tasks import Multiclass
from tests.support.images import encode, photo
from tests.support.models import LINEAGE, golden_png
from tests.support.numerics import SAME_LOSS

PAGE = Path(__file__).parents[3] / "docs/versions.md"
TASK = Multiclass(labels=("daisy", "rose", "tulip"), temperature=1.7)

pytestmark = pytest.mark.numerical


def program() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "eagleray" not in found
    return str(found)


def write_model(folder: Path, name: str, contract: ImageContract) -> Predictor:
    """Write a package of a network with random weights, and return its predictor."""
    torch.manual_seed(0)
    architecture = architecture_for(name, contract, TASK.num_outputs)
    package = create_package(
        name="flowers",
        task=TASK,
        architecture=architecture,
        contract=contract,
        module=build(architecture).eval(),
        lineage=LINEAGE,
        golden_images=[golden_png(0)],
    )
    write_package(package, str(folder))
    return Predictor(package, precision="float32", engine="eager")


@pytest.mark.parametrize(
    ("name", "size", "named"),
    [
        ("resnet18", 96, "torchvision-reference"),
        ("mobilenet_v3_small", 48, "whole-image"),
        ("vit_b_32", 64, None),
        ("timm/resnet10t", None, None),
    ],
)
def test_the_program_predicts_what_eagleray_predicts(
    tmp_path: Path, name: str, size: int | None, named: str | None
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    folder, image = tmp_path / "flowers-3", tmp_path / "photo.jpg"
    predictor = write_model(folder, name, default_contract(name, named, size=size))
    image.write_bytes(encode(photo()))
    code = program().replace('Path("flowers-3")', repr(folder)).replace("PosixPath", "Path")
    code = code.replace('Path("photo.jpg")', repr(image)).replace("PosixPath", "Path")
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, str(PAGE), "exec"), names)
    outcome = predictor.predict([image.read_bytes()])[0]
    assert outcome.prediction is not None
    expected = dict(zip(TASK.labels, outcome.prediction.probabilities.tolist(), strict=True))
    assert names["prediction"] == pytest.approx(expected, rel=SAME_LOSS, abs=1e-5)
