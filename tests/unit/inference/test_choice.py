"""The fastest engine and precision on this machine are measured once, cached, and explained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eagleray.core.errors import InputError, UnknownNameError, UnsupportedNetworkError
from eagleray.core.types import Precision
from eagleray.inference.choice import (
    Choice,
    EngineRequest,
    MeasuredSpeeds,
    choose,
    require_engine,
    require_precision_here,
)
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import Engine, Run
from eagleray.inference.openvino import OpenVinoEngine
from eagleray.inference.plan import ExecutionPlan
from eagleray.inference.predictor import Predictor
from eagleray.models.manifest import ModelManifest, Quantization
from eagleray.models.package import ModelPackage
from tests.support.models import small_package

pytestmark = pytest.mark.numerical

PLAN = ExecutionPlan("cpu", "bfloat16", batch_size=4, num_threads=1)
ALL = math.inf


class FakeEngines:
    """Stands in for the engines: their passes take the seconds that a test says, on its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.passes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.broken: dict[str, InputError] = {}
        self.prepared: list[str] = []

        def prepare(engine: Engine, _: ModelPackage, plan: ExecutionPlan, __: Path) -> Run:
            self.prepared.append(f"{engine.name} {plan.precision}")
            if engine.name in self.broken:
                raise self.broken[engine.name]
            return self._network(f"{engine.name} {plan.precision}")

        for engine in (EagerEngine, OpenVinoEngine):
            monkeypatch.setattr(engine, "prepare", prepare)
        monkeypatch.setattr("eagleray.inference.choice.has_bfloat16", lambda _: True)

    def _network(self, name: str) -> Run:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            self.passes.append(name)
            self.now += self.seconds.get(name, 1.0)
            return inputs[0]

        return run

    def choose(
        self,
        folder: Path,
        *,
        engine: str = "auto",
        precision: Precision = "auto",
        images: float = ALL,
    ) -> Choice:
        return choose(
            small_package(),
            PLAN,
            EngineRequest(engine, precision, images),
            cache_folder=folder,
            clock=lambda: self.now,
        )


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> FakeEngines:
    return FakeEngines(monkeypatch)


def named(choice: Choice) -> str:
    return f"{choice.engine.name} {choice.plan.precision}"


SPEEDS = {"eager float32": 0.4, "eager bfloat16": 0.3, "openvino float32": 0.2}


@pytest.mark.parametrize(
    ("openvino_bfloat16", "chosen"),
    [(0.1, "openvino bfloat16"), (0.19, "openvino float32"), (0.5, "openvino float32")],
)
def test_the_fastest_is_taken_and_bfloat16_only_if_the_gain_is_clear(
    engines: FakeEngines, tmp_path: Path, openvino_bfloat16: float, chosen: str
) -> None:
    engines.seconds = {**SPEEDS, "openvino bfloat16": openvino_bfloat16}
    choice = engines.choose(tmp_path)
    assert named(choice) == chosen
    assert choice.final
    speeds = {name: 4 / seconds for name, seconds in engines.seconds.items()}
    own = speeds.pop(chosen)
    assert choice.plan.reason.startswith(f"measured on this machine: {own:,.1f} images/s; ")
    assert all(f"{name} {speed:,.1f}" in choice.plan.reason for name, speed in speeds.items())


def test_a_machine_measures_a_package_once(
    monkeypatch: pytest.MonkeyPatch, engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = {**SPEEDS, "openvino bfloat16": 0.1}

    def measures() -> bool:
        engines.passes.clear()
        assert named(engines.choose(tmp_path)) == "openvino bfloat16"
        return bool(engines.passes)

    assert measures()
    assert not measures()
    (kept,) = (tmp_path / "speeds").glob("*.json")
    speeds = MeasuredSpeeds.model_validate_json(kept.read_bytes()).images_per_second
    assert speeds["openvino bfloat16"] == pytest.approx(40)
    kept.write_text("{")
    assert measures()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "another")  # and so another machine, for kernels
    assert measures()


def test_a_short_job_measures_only_what_costs_nothing_to_prepare(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = {**SPEEDS, "openvino bfloat16": 0.1}
    choice = engines.choose(tmp_path, images=0)
    assert (named(choice), choice.final) == ("eager bfloat16", False)
    assert named(engines.choose(tmp_path, images=1)) == "eager bfloat16"
    assert named(engines.choose(tmp_path, images=100)) == "eager bfloat16"
    assert not any(name.startswith("openvino") for name in engines.passes)
    choice = engines.choose(tmp_path, images=10_000)
    assert (named(choice), choice.final) == ("openvino bfloat16", True)
    assert named(engines.choose(tmp_path, images=0)) == "openvino bfloat16"  # measured by then


def test_a_few_images_are_predicted_before_a_measurement_would_end(
    engines: FakeEngines, tmp_path: Path
) -> None:
    choice = engines.choose(tmp_path, images=10)
    assert (named(choice), choice.final) == ("eager float32", False)
    assert choice.plan.reason == "too few images to measure others"
    assert not engines.passes


def test_an_engine_that_is_named_runs_although_another_was_measured(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.choose(tmp_path, images=0)  # measures eager only
    choice = engines.choose(tmp_path, engine="openvino", images=1)
    assert (named(choice), choice.final) == ("openvino float32", False)


def test_speeds_measured_at_another_load_are_compared_with_what_both_measured(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = dict(SPEEDS)
    engines.choose(tmp_path, images=0)
    engines.seconds = {name: 10 * seconds for name, seconds in SPEEDS.items()}  # a busy machine
    engines.seconds["openvino bfloat16"] = 3.5
    choice = engines.choose(tmp_path)
    assert named(choice) == "openvino float32"
    assert choice.plan.reason.startswith("measured on this machine: 20.0 images/s; ")


def test_emulated_bfloat16_is_given_up_after_one_pass(engines: FakeEngines, tmp_path: Path) -> None:
    engines.seconds = {"eager float32": 0.5, "eager bfloat16": 5.0}
    assert named(engines.choose(tmp_path, engine="eager")) == "eager float32"
    assert engines.passes.count("eager bfloat16") == 1


def test_an_engine_that_cannot_run_a_network_is_passed_over_unless_it_is_named(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = dict(SPEEDS)
    engines.broken = {"openvino": InputError("this CPU has no kernels of this precision.")}
    choice = engines.choose(tmp_path)
    assert (named(choice), choice.final) == ("eager bfloat16", True)
    assert "openvino" not in choice.plan.reason
    assert not engines.choose(tmp_path).plan.reason.count("openvino")
    assert engines.choose(tmp_path, engine="openvino", precision="float32").final


def test_a_network_that_an_engine_cannot_run_is_tried_once_for_all_precisions(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = dict(SPEEDS)
    engines.broken = {"openvino": UnsupportedNetworkError("OpenVINO cannot run lenet5.")}
    with pytest.raises(InputError, match="OpenVINO cannot run lenet5"):
        engines.choose(tmp_path, engine="openvino")
    assert engines.prepared == ["openvino float32"]
    assert named(engines.choose(tmp_path)) == "eager bfloat16"
    assert engines.prepared.count("openvino float32") == 2  # another command tries it again
    assert "openvino bfloat16" not in engines.prepared
    engines.prepared.clear()
    assert named(engines.choose(tmp_path)) == "eager bfloat16"
    assert not engines.prepared


def test_what_is_named_is_taken_without_a_measurement(engines: FakeEngines, tmp_path: Path) -> None:
    choice = engines.choose(tmp_path, engine="openvino", precision="float32")
    assert (named(choice), choice.plan.reason) == ("openvino float32", "as requested")
    assert not engines.passes
    with pytest.raises(UnknownNameError, match=r"No engine is named 'openvin'\. Nearest: openvino"):
        engines.choose(tmp_path, engine="openvin")


def test_a_cache_that_cannot_be_written_costs_a_measurement_each_time(
    engines: FakeEngines, tmp_path: Path
) -> None:
    engines.seconds = {**SPEEDS, "openvino bfloat16": 0.1}
    (tmp_path / "file").write_text("")
    for _ in range(2):
        engines.passes.clear()
        assert named(engines.choose(tmp_path / "file")) == "openvino bfloat16"
        assert engines.passes


def test_on_a_gpu_eager_runs_and_openvino_is_refused(tmp_path: Path) -> None:
    plan = ExecutionPlan("cuda", "bfloat16", 128)
    choice = choose(small_package(), plan, EngineRequest(), cache_folder=tmp_path)
    assert (named(choice), choice.final) == ("eager bfloat16", True)
    with pytest.raises(InputError, match="The engine openvino runs on CPUs only"):
        require_engine("openvino", small_package().manifest, "cuda")


def quantized(package: ModelPackage) -> ModelManifest:
    quantization = Quantization(method="static", calibration_digest="0" * 64, num_images=32)
    return package.manifest.model_copy(update={"quantization": quantization})


def test_an_engine_that_runs_no_quantized_models_is_refused_before_a_job() -> None:
    manifest = quantized(small_package())
    require_engine("openvino", manifest)
    require_engine("auto", manifest, "cpu")
    require_engine("eager", small_package().manifest, "cuda")
    with pytest.raises(
        InputError, match="engine eager runs no quantized models; use --engine openvino or auto"
    ):
        require_engine("eager", manifest)
    with pytest.raises(InputError, match="is quantized, and the engine openvino runs on CPUs only"):
        require_engine("auto", manifest, "cuda")
    require_engine("auto", manifest, precision="auto")
    with pytest.raises(InputError, match="is quantized to int8 and cannot run in float32; use the"):
        require_engine("auto", manifest, precision="float32")
    with pytest.raises(UnknownNameError, match=r"named 'bogus'\. Use auto, eager or openvino\."):
        require_engine("bogus")


def test_bfloat16_of_openvino_is_refused_where_the_cpu_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr("eagleray.inference.plan._cpu_capabilities", lambda: {"avx2": True})
    for engine, precision in (("openvino", "float32"), ("openvino", "auto"), ("eager", "bfloat16")):
        require_precision_here(engine, precision)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="CPU has no bfloat16, and the engine openvino does not"):
        require_precision_here("openvino", "bfloat16")
    monkeypatch.setattr("eagleray.inference.plan._cpu_capabilities", lambda: {"amx_bf16": True})
    require_precision_here("openvino", "bfloat16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # it is to be used like one without
    with pytest.raises(InputError, match="CPU has no bfloat16"):
        require_precision_here("openvino", "bfloat16")


def test_an_engine_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> None:
        raise ImportError

    monkeypatch.setattr("eagleray.inference.openvino.import_openvino", missing)
    require_engine("auto", small_package().manifest, "cpu")
    with pytest.raises(InputError, match="openvino is not installed; install it with: pip"):
        require_engine("openvino", small_package().manifest, "cpu")
    with pytest.raises(InputError, match="is quantized, and the engine openvino is not installed"):
        require_engine("auto", quantized(small_package()), "cpu")


@pytest.mark.parametrize("device", ["bogus", "cuda:99"])
def test_a_device_that_the_machine_lacks_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=f"Device '{device}' is not on this machine; use --device"):
        Predictor(small_package(), device=device)


def test_real_passes_are_timed_and_the_predictor_says_what_runs(tmp_path: Path) -> None:
    predictor = Predictor(small_package(), device="cpu", cache_folder=tmp_path, expected_images=ALL)
    (kept,) = (tmp_path / "speeds").glob("*.json")
    speeds = MeasuredSpeeds.model_validate_json(kept.read_bytes()).images_per_second
    assert {"eager float32", "openvino float32"} <= speeds.keys()
    assert predictor.measured
    assert f"{predictor.plan.precision} (measured on this machine: " in predictor.engine
    told = Predictor(
        small_package(), engine="eager", precision="float32", device="cpu", cache_folder=tmp_path
    )
    version = torch.__version__.split("+")[0]
    assert told.engine == f"PyTorch {version} on cpu, float32 (as requested)"
