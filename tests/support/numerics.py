"""What may differ between two computations of the same prediction, and a stand-in that makes it so.

Kernels may sum in another order for another shape or another place in a batch. Whether they do is
the CPU's and the library's choice, so a test that passes with the kernels of one machine proves
nothing: `rounding_by_place` makes the last bits differ everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eagleray.core.types import TOLERANCE
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import Run
from eagleray.inference.plan import ExecutionPlan
from eagleray.models.package import ModelPackage
from eagleray.tasks.outcome import Outcome, Prediction

__all__ = [
    "OPENVINO_ENLARGES",
    "OPENVINO_NORMALISES",
    "SAME_LOSS",
    "assert_same_outcomes",
    "assert_same_prediction",
    "make_all_round_by_place",
    "rounding_by_place",
]

SAME_LOSS = 1e-5
"""Largest relative difference of a loss when a training is repeated or resumed on one machine."""

OPENVINO_ENLARGES = pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41",
    reason="OpenVINO has no kernel that enlarges feature maps on a CPU without AVX",
)
"""Marks tests of networks that enlarge feature maps in OpenVINO."""

OPENVINO_NORMALISES = pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "SSE41",
    reason="OpenVINO has no group normalisation where oneDNN is held to SSE4.1",
)
"""Marks tests of networks with group normalisation in OpenVINO."""

_LAST_BITS = {"float32": 2.0**-21, "bfloat16": 2.0**-9}


def assert_same_outcomes(
    found: Sequence[Outcome], expected: Sequence[Outcome], *, precision: str = "float32"
) -> None:
    """The same failures, and predictions that are equal up to rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        assert one.failure == other.failure
        assert one.ok == other.ok
        if one.prediction is not None and other.prediction is not None:
            assert_same_prediction(one.prediction, other.prediction, precision=precision)


def assert_same_prediction(
    found: Prediction, expected: Prediction, *, precision: str = "float32"
) -> None:
    """Probabilities within the tolerance, and the same label unless two are that close."""
    tolerance = TOLERANCE[precision]
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=tolerance)
    second, first = np.sort(expected.probabilities)[-2:]
    assert found.label == expected.label or first - second <= 2 * tolerance


def rounding_by_place(run: Run, precision: str = "float32") -> Run:
    """Return the network with last bits that depend on a row's place and on the batch's size."""

    def rounded(outputs: torch.Tensor) -> torch.Tensor:
        places = (torch.arange(len(outputs)) + len(outputs)) % 5 - 2
        factors = 1 + places * _LAST_BITS[precision]
        return outputs * factors.reshape(-1, *[1] * (outputs.ndim - 1))

    def elsewhere(*inputs: torch.Tensor) -> Any:
        outputs: Any = run(*inputs)
        if isinstance(outputs, torch.Tensor):
            return rounded(outputs)
        return {name: rounded(tensor) for name, tensor in outputs.items()}

    return elsewhere


def make_all_round_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every eager network that this process prepares from here on round by place."""

    prepare = EagerEngine.prepare

    def prepared(
        engine: EagerEngine, package: ModelPackage, plan: ExecutionPlan, cache_folder: Path
    ) -> Run:
        return rounding_by_place(prepare(engine, package, plan, cache_folder), plan.precision)

    monkeypatch.setattr(EagerEngine, "prepare", prepared)
