"""Networks with fewer channels are rebuilt from a package; impossible counts are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.core.errors import PackageError
from eagleray.inference.verification import verify_package
from eagleray.models.architectures import Architecture
from eagleray.models.building import build, build_on_meta
from eagleray.models.networks.channels import channels_of, narrow
from eagleray.models.package import ModelPackage, read_package, write_package
from tests.support.models import lenet, small_package

pytestmark = pytest.mark.numerical

NARROW = {
    "features.0": (1, 4),
    "features.3": (4, 10),
    "classifier.0": (250, 100),
    "classifier.2": (100, 84),
}
"""A LeNet-5 with 4 and 10 maps instead of 6 and 16, and 100 units instead of 120."""


def narrow_package(**channels: Any) -> ModelPackage:
    architecture = lenet().model_copy(update={"channels": {**NARROW, **channels}})
    torch.manual_seed(0)
    return small_package(architecture=architecture, module=build(architecture).eval())


def test_the_recorded_channels_rebuild_the_network() -> None:
    architecture = Architecture(name="mobilenet_v3_small", num_outputs=3)
    plain = build_on_meta(architecture)
    widening = plain.get_submodule("features.2.block.0.0")  # before the convolution by channels
    assert isinstance(widening, torch.nn.Conv2d)
    expanded = widening.out_channels
    channels = {
        "features.2.block.0.0": (16, expanded - 8),
        "features.2.block.0.1": (expanded - 8, expanded - 8),
        "features.2.block.1.0": (expanded - 8, expanded - 8),
        "features.2.block.1.1": (expanded - 8, expanded - 8),
        "features.2.block.2.0": (expanded - 8, 24),
    }
    narrowed = build(architecture.model_copy(update={"channels": channels})).eval()
    assert channels_of(narrowed, plain) == channels
    by_channel = narrowed.get_submodule("features.2.block.1.0")
    assert by_channel.groups == expanded - 8  # it stays a convolution of each channel on its own
    assert narrowed(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    again = build(architecture)
    narrow(again, channels)
    again.load_state_dict(narrowed.state_dict())
    assert torch.equal(again.eval()(torch.ones(1, 3, 64, 64)), narrowed(torch.ones(1, 3, 64, 64)))


def test_a_package_keeps_the_channels_and_predicts_the_same(tmp_path: Path) -> None:
    package = narrow_package()
    folder = str(tmp_path / "narrow")
    write_package(package, folder)
    again = read_package(folder, expected_digest=package.digest)
    assert again.manifest.architecture.channels == NARROW
    image = torch.rand(2, 1, 32, 32)
    assert torch.equal(again.build_module()(image), package.build_module()(image))
    report = verify_package(folder)
    assert report.passed, report.faults
    assert len(package.files["model.safetensors"]) < len(small_package().files["model.safetensors"])


def test_packages_without_fewer_channels_keep_their_json() -> None:
    manifest = small_package().manifest.model_dump(mode="json")
    assert "channels" not in manifest["architecture"]
    assert "teacher" not in manifest["lineage"]


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        ({"features.9": [1, 4]}, "no layer 'features.9'"),
        ({"features.1": [4, 4]}, "no layer 'features.1'"),  # an activation
        ({"features.0": [1, 7]}, "cannot be reduced to 1 and 7"),
        ({"features.0": [2, 4]}, "cannot be reduced to 2 and 4"),
        ({"features.0": [1, 2**31 - 1]}, "cannot be reduced"),
        ({"features.0": [1, 5]}, "has the shape"),  # other than the weights
        ({"features.0": [1, 0]}, "is not valid"),
        ({"features.0": [1]}, "is not valid"),
        ({"features.0": "many"}, "is not valid"),
        ({f"layer{number}": [1, 1] for number in range(4001)}, "is not valid"),
    ],
)
def test_impossible_channels_are_refused_in_a_sentence(
    tmp_path: Path, channels: dict[str, Any], sentence: str
) -> None:
    write_package(narrow_package(), str(tmp_path))
    path = tmp_path / "model.json"
    manifest = json.loads(path.read_text())
    manifest["architecture"]["channels"].update(channels)
    path.write_text(json.dumps(manifest))
    with pytest.raises(PackageError) as caught:
        read_package(str(tmp_path)).build_module()
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(".")
    assert not verify_package(str(tmp_path)).passed


def test_channels_that_do_not_fit_each_other_are_refused_by_verify(tmp_path: Path) -> None:
    architecture = lenet().model_copy(update={"channels": {"features.0": (1, 4)}})
    package = small_package()
    module = build(architecture)
    broken = small_package(architecture=architecture, module=module, golden_images=[])
    write_package(broken, str(tmp_path))
    report = verify_package(str(tmp_path))
    assert [check.name for check in report.checks if check.passed is False] == ["input size"]
    assert "lenet5 cannot take images of 32 x 32 pixels" in report.faults[0]
    assert broken.digest != package.digest


def test_groups_divide_the_channels() -> None:
    resnext = build_on_meta(Architecture(name="resnext50_32x4d", num_outputs=3))
    with pytest.raises(ValueError, match="has 32 groups, which 100 input and 100 output"):
        narrow(resnext, {"layer1.0.conv2": (100, 100)})
    with pytest.raises(ValueError, match="as many inputs as outputs"):
        narrow(resnext, {"layer1.0.bn2": (100, 96)})
