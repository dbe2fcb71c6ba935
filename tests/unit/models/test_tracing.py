"""Why a network cannot be traced, without the terms of PyTorch's tracers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eagleray.core.errors import InputError
from eagleray.models.building import make_backbone
from eagleray.models.networks.feature_maps import extract_feature_maps, feature_levels
from eagleray.models.tracing import describe_trace_fault
from tests.support.segmented import BranchingStages


class TakingNumbers(nn.Module):
    """Multiplies images by a number that is taken out of a tensor."""

    def forward(self, images: Tensor) -> Tensor:
        return images * float(images.max())


def trace(network: nn.Module) -> Any:
    return torch.fx.symbolic_trace(network)


def export(network: nn.Module) -> Any:
    return torch.export.export(network, (torch.zeros(2, 3, 16, 16),))


def export_as_onnx(network: nn.Module) -> Any:
    batch = {0: torch.export.Dim("batch", min=1)}
    images = (torch.zeros(2, 3, 16, 16),)
    return torch.onnx.export(network, images, dynamo=True, dynamic_shapes=(batch,), verbose=False)


@pytest.mark.parametrize("make", [trace, export, export_as_onnx])
@pytest.mark.filterwarnings("ignore")
def test_a_branch_on_values_is_named(make: Any) -> None:
    with pytest.raises(Exception, match=r"") as caught:
        make(BranchingStages(5).eval())
    assert describe_trace_fault(caught.value).startswith(
        "its forward pass depends on the values of its tensors"
    )


def test_values_that_are_taken_as_numbers_are_named() -> None:
    with pytest.raises(TypeError) as caught:
        trace(TakingNumbers())
    assert describe_trace_fault(caught.value) == (
        "its forward pass takes a tensor's values as numbers or as an array of numpy"
    )


def test_any_other_fault_is_its_first_line_without_colours() -> None:
    outer = RuntimeError("step 1 of 3")
    outer.__cause__ = ValueError("\x1b[96mno kernel\x1b[0m for this\nmore")
    assert describe_trace_fault(outer) == "no kernel for this"
    assert describe_trace_fault(KeyError()) == "KeyError"


def test_a_backbone_that_cannot_be_traced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.segmented")
    backbone = make_backbone("tests.support.segmented:BranchingStages")
    fault = r"cannot be taken apart \(its forward pass depends on .* choose another one, such as"
    with pytest.raises(InputError, match=fault) as caught:
        extract_feature_maps(backbone, feature_levels(backbone))
    assert "symbolically" not in str(caught.value)
