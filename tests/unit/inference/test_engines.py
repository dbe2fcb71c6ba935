"""Engines: prepared networks have the outputs of the original network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eagleray.inference.eager import EagerEngine, fuse_and_cast
from eagleray.inference.engine import ENGINES
from eagleray.inference.openvino import OpenVinoEngine
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.network import ImageNetwork
from tests.support.letters import CONTRACT, package_of

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "resnet20"],
)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_a_network_that_runs_predicts_as_the_one_that_was_built(
    name: str, precision: str, tolerance: float
) -> None:
    package = package_of(name)
    plan = ExecutionPlan(device="cpu", precision=precision, batch_size=4, num_threads=1)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = ImageNetwork(package.build_module(), CONTRACT)(images).softmax(1)
        run = EagerEngine().prepare(package, plan, Path())
        outputs = run(images).softmax(1)
    assert outputs.dtype == torch.float32
    assert (outputs - expected).abs().max() <= tolerance


def test_batch_normalisation_is_gone_and_weights_are_rounded_once() -> None:
    layers = list(fuse_and_cast(package_of("resnet18").build_module(), torch.bfloat16).modules())
    assert not [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    weighted = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert weighted
    assert {layer.weight.dtype for layer in weighted} == {torch.bfloat16}


class LooksAtItsImages(nn.Module):
    """Its path depends on values, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(images))
        return features if images.mean() > 0 else -features


def test_a_network_that_cannot_be_traced_runs_as_it_is() -> None:
    module = LooksAtItsImages().eval()
    images = torch.ones(1, 3, 8, 8)
    assert torch.equal(fuse_and_cast(module, None)(images), module(images))


def test_engines_are_found_by_name() -> None:
    assert set(ENGINES.names()) == {"eager", "openvino"}
    assert isinstance(ENGINES.get("openvino"), OpenVinoEngine)
