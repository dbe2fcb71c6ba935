"""The faster precision on this machine is measured once, cached, and explained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eagleray.inference.compiled import CompiledEngine
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import Engine, Run
from eagleray.inference.plan import ExecutionPlan
from eagleray.inference.precision import MeasuredPrecision, with_measured_precision
from eagleray.inference.predictor import Predictor
from eagleray.models.package import ModelPackage
from tests.support.models import small_package

pytestmark = pytest.mark.numerical

CANDIDATE = ExecutionPlan("cpu", "bfloat16", batch_size=4, num_threads=1)
Seconds = Callable[[ExecutionPlan, str], float]


class FakeEngines:
    """Stands in for the engines: their passes take the seconds that a test says, on its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.passes: list[tuple[str, str]] = []
        self.seconds: Seconds = lambda _plan, _engine: 0.1

        def prepare(engine: Engine, _: ModelPackage, plan: ExecutionPlan, __: Path) -> Run:
            return self._network(engine, plan)

        for engine in (EagerEngine, CompiledEngine):
            monkeypatch.setattr(engine, "prepare", prepare)

    def _network(self, engine: Engine, plan: ExecutionPlan) -> Run:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            self.passes.append((plan.precision, engine.name))
            self.now += self.seconds(plan, engine.name)
            return inputs[0]

        return run

    def choose(self, folder: Path, *, expected_images: int = 0) -> ExecutionPlan:
        return with_measured_precision(
            small_package(),
            CANDIDATE,
            compile_mode="auto",
            expected_images=expected_images,
            cache_folder=folder,
            clock=lambda: self.now,
        )


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> FakeEngines:
    return FakeEngines(monkeypatch)


@pytest.mark.parametrize(
    ("bfloat16_seconds", "precision", "reason"),
    [
        (0.1, "bfloat16", "measured on this machine: 40.0 images/s, against 20.0 in float32"),
        (
            0.19,
            "float32",
            "measured on this machine: 20.0 images/s, against 21.1 in bfloat16, less than 1.2 "
            "times as fast",
        ),
        (0.27, "float32", "measured on this machine: 20.0 images/s, against 14.8 in bfloat16"),
    ],
)
def test_the_faster_precision_is_taken_and_float32_unless_the_gain_is_clear(
    engines: FakeEngines,
    tmp_path: Path,
    bfloat16_seconds: float,
    precision: str,
    reason: str,
) -> None:
    engines.seconds = lambda p, _: 0.2 if p.precision == "float32" else bfloat16_seconds
    plan = engines.choose(tmp_path)
    assert (plan.precision, plan.reason) == (precision, reason)
    assert engines.passes.count(("float32", "eager")) == engines.passes.count(("bfloat16", "eager"))


def test_a_machine_measures_a_package_once(
    monkeypatch: pytest.MonkeyPatch, engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = lambda p, _: 0.2 if p.precision == "float32" else 0.1

    def measures() -> bool:
        engines.passes.clear()
        assert engines.choose(tmp_path).precision == "bfloat16"
        return bool(engines.passes)

    assert measures()
    assert not measures()
    (kept,) = (tmp_path / "precision").glob("*.json")
    assert MeasuredPrecision.model_validate_json(kept.read_bytes()).bfloat16 == pytest.approx(40)
    kept.write_text("{")
    assert measures()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "another")  # and so another machine, for kernels
    assert measures()


def test_emulated_bfloat16_is_given_up_after_one_pass(engines: FakeEngines, tmp_path: Path) -> None:
    engines.seconds = lambda p, _: 0.5 if p.precision == "float32" else 5.0
    assert engines.choose(tmp_path).precision == "float32"
    assert engines.passes == [("float32", "eager"), ("bfloat16", "eager")]


@pytest.mark.parametrize(("eager", "measured_again"), [(0.18, True), (0.1, False), (0.4, False)])
def test_where_both_are_close_the_compiled_networks_decide(
    engines: FakeEngines, tmp_path: Path, eager: float, measured_again: bool
) -> None:
    def seconds(plan: ExecutionPlan, engine: str) -> float:
        if engine == "compiled":
            return {"float32": 0.1, "bfloat16": 0.05}[plan.precision]
        return {"float32": 0.2}.get(plan.precision, eager)

    engines.seconds = seconds
    assert engines.choose(tmp_path).precision == ("bfloat16" if eager < 0.15 else "float32")
    plan = engines.choose(tmp_path, expected_images=10**12)
    assert (("bfloat16", "compiled") in engines.passes) is measured_again
    if measured_again:
        assert plan.precision == "bfloat16"
        assert engines.choose(tmp_path).precision == "bfloat16"  # what is not compiled follows


def test_a_cache_that_cannot_be_written_costs_a_measurement_each_time(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = lambda p, _: 0.2 if p.precision == "float32" else 0.1
    (tmp_path / "file").write_text("")
    assert engines.choose(tmp_path / "file").precision == "bfloat16"
    engines.passes.clear()
    engines.choose(tmp_path / "file")
    assert engines.passes


def test_real_passes_are_timed_and_the_predictor_says_what_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("eagleray.inference.plan.has_bfloat16", lambda _: True)
    predictor = Predictor(small_package(), device="cpu", cache_folder=tmp_path)
    (kept,) = (tmp_path / "precision").glob("*.json")
    measured = MeasuredPrecision.model_validate_json(kept.read_bytes())
    assert predictor.plan.precision == measured.precision
    assert predictor.engine == (
        f"PyTorch on cpu, not compiled, {measured.precision} ({measured.reason})"
    )
    told = Predictor(small_package(), device="cpu", precision="float32", cache_folder=tmp_path)
    assert told.engine == "PyTorch on cpu, not compiled, float32 (as requested)"


def test_without_bfloat16_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("eagleray.inference.plan.has_bfloat16", lambda _: False)
    predictor = Predictor(small_package(), device="cpu", cache_folder=tmp_path)
    assert predictor.engine.endswith("float32 (the device has no bfloat16)")
    assert not list(tmp_path.iterdir())
