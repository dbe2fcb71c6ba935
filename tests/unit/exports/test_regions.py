"""A network of boxes with masks: the same in any batch and in OpenVINO; no exports and no int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagleray.compression.prepare import open_quantization
from eagleray.compression.spec import QuantizeSpec
from eagleray.core.errors import InputError
from eagleray.exports.job import open_export
from eagleray.exports.spec import ExportSpec
from eagleray.inference.predictor import Predictor
from eagleray.registry.references import LoadedModel
from tests.support.models import registry_in, settings_in
from tests.support.numerics import OPENVINO_NORMALISES
from tests.support.regions import region_package

pytestmark = pytest.mark.numerical

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@OPENVINO_NORMALISES
@pytest.mark.long
def test_batches_and_openvino_have_the_outputs_of_single_images(tmp_path: Path) -> None:
    package = region_package()
    eager, other = (
        Predictor(package, engine=engine, precision="float32", device="cpu", cache_folder=tmp_path)
        for engine in ("eager", "openvino")
    )
    single = np.concatenate([eager.forward(PIXELS[place : place + 1]) for place in range(4)])
    assert single.shape == (4, 100, 6 + 28 * 28)
    assert (single[:, :, 4] > 0.05).sum() > 40
    for found in (eager.forward(PIXELS), other.forward(PIXELS)):
        np.testing.assert_allclose(found, single, atol=1e-3)
    for one in (eager, other):
        assert one.check_golden().healthy


def test_exports_and_int8_are_refused_in_one_sentence(tmp_path: Path) -> None:
    package = region_package()
    request = ExportSpec(model="found", format="onnx", output=str(tmp_path / "onnx"))
    with pytest.raises(InputError, match=r"outputs \(detections, masks\) that exports do not des"):
        open_export(request, LoadedModel("found", package), settings_in(tmp_path))
    registry = registry_in(tmp_path)
    version = registry.register(package)
    with pytest.raises(InputError, match=r"outputs \(detections, masks\) that are not quantized"):
        open_quantization(QuantizeSpec.make({"model": version.reference}), registry.settings)
