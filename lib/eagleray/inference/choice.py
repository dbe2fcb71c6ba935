"""Chooses the engine and the precision of a network's forward passes by measuring on this machine.

    engine, plan = choose(package, plan, request, cache_folder=…)   # plan.precision, plan.reason

What a CPU's flags promise is not what a network gets: on some Xeons bfloat16 takes a third more
time than float32, and which engine is fastest depends on the network too. So a few passes of each
candidate are timed in turns, once for each package and machine, and the speeds are kept in the
cache for all processes of the machine. A candidate that takes long to prepare is measured only if
the job is long enough to gain more than that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from eagleray.core.errors import InputError, UnsupportedError, UnsupportedNetworkError
from eagleray.core.types import NetworkPrecision, Precision
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import ENGINES, Engine, Run
from eagleray.inference.openvino import OpenVinoEngine
from eagleray.inference.plan import ExecutionPlan, has_bfloat16, machine_fingerprint
from eagleray.io.lock import lock_if_writable
from eagleray.models.graph_export import zero_inputs
from eagleray.models.package import ModelManifest, ModelPackage

__all__ = [
    "AUTO",
    "Choice",
    "EngineRequest",
    "MeasuredSpeeds",
    "choose",
    "require_engine",
    "require_precision_here",
]

log = logging.getLogger(__name__)

AUTO = "auto"

MIN_GAIN = 1.2
"""The speed of bfloat16 relative to float32, which is more exact, from which on it is chosen."""

_EXPECTED_GAIN = 0.25  # roughly, the share of its time that a job saves by the best other engine
_MIN_IMAGES = 50  # so few images are predicted before a measurement ends
_BATCH_SIZE = 8
_MAX_ROUNDS = 5
_MAX_SECONDS = 1.0  # after which no further round begins
_UNABLE = 1e-9  # images per second of an engine that cannot run a network
_HOPELESS_RATIO = 3.0  # of a first pass to the fastest one, from which on it is not timed again

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What a user asks of an engine.

    Attributes:
        engine: Name of the engine; `auto` takes the fastest one.
        precision: Precision of the network; `auto` takes the faster one.
        expected_images: Number of images that `num_threads` threads will predict; infinity measures
            every candidate, 0 (unknown) only those that cost nothing to prepare.
    """

    engine: str = AUTO
    precision: Precision = "auto"
    expected_images: float = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine and the plan of a network.

    Attributes:
        engine: The engine.
        plan: The plan, with the precision and the reason for display.
        final: Whether every candidate was measured, or there was nothing to measure.
    """

    engine: Engine
    plan: ExecutionPlan
    final: bool


@dataclass(frozen=True, slots=True)
class _Candidate:
    engine: Engine
    precision: NetworkPrecision

    @property
    def name(self) -> str:
        return f"{self.engine.name} {self.precision}"


class MeasuredSpeeds(BaseModel):
    """The speeds of a network's forward passes on one machine.

    Attributes:
        images_per_second: Speed of each candidate, by engine and precision, as in
            `openvino float32`. Each was measured in turns with `eager float32`, and is scaled to
            the speed of that in the first measurement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images_per_second: dict[str, PositiveFloat] = {}

    def fastest(self, candidates: Sequence[_Candidate]) -> _Candidate:
        """Return the fastest measured candidate; bfloat16 only if it is clearly faster."""
        speeds = self.images_per_second

        def rank(candidate: _Candidate) -> float:
            handicap = MIN_GAIN if candidate.precision == "bfloat16" else 1.0
            return speeds[candidate.name] / handicap

        return max((one for one in candidates if one.name in speeds), key=rank)

    def reason(self, chosen: _Candidate) -> str:
        """Return why a candidate is used, for display."""
        speeds = dict(self.images_per_second)
        own = speeds.pop(chosen.name)
        others = sorted(speeds.items(), key=lambda item: -item[1])
        others = [(name, speed) for name, speed in others if speed > _UNABLE]
        against = ", ".join(f"{name} {speed:,.1f}" for name, speed in others)
        return f"measured on this machine: {own:,.1f} images/s" + (f"; {against}" if others else "")


def require_engine(
    engine: str,
    manifest: ModelManifest | None = None,
    device: str | None = None,
    precision: Precision = "auto",
) -> None:
    """Refuse an engine that is unknown or cannot run a model, before anything is loaded.

    Args:
        engine: Name of the engine, or `auto`.
        manifest: Manifest of the model package; None if the model is not known yet.
        device: The device; None if it is not known yet.
        precision: Precision that the model is to run in.

    Raises:
        UnknownNameError: If there is no such engine.
        InputError: If it, or for `auto` every engine, cannot run the model on the device, or the
            model is quantized to another precision.
    """
    _usable_engines(engine, manifest, device)
    if manifest is not None:
        _quantized_precision(manifest, precision)


def require_precision_here(engine: str, precision: Precision) -> None:
    """Refuse a precision that an engine cannot run in on the CPU of this machine.

    Args:
        engine: Name of the engine, or `auto`.
        precision: Precision that is asked for.

    Raises:
        UnsupportedError: If it is OpenVINO's bfloat16, and the CPU has none; PyTorch emulates it.
    """
    if (engine, precision) == (OpenVinoEngine.name, "bfloat16") and not has_bfloat16("cpu"):
        raise UnsupportedError(
            "This machine's CPU has no bfloat16, and the engine openvino does not emulate it; use "
            "--precision float32, or auto."
        )


def choose(
    package: ModelPackage,
    plan: ExecutionPlan,
    request: EngineRequest,
    *,
    cache_folder: Path,
    clock: Clock = time.perf_counter,
) -> Choice:
    """Return the engine for a package, and the plan with its precision.

    The first process that needs a measurement makes it, which takes a few seconds, while other
    processes of the machine wait for it. If the cache cannot be written, the result is not kept.

    Args:
        package: The model package.
        plan: The plan, whose precision is still open if `request.precision` is.
        request: What the user asks for.
        cache_folder: The folder of measurements and converted networks.
        clock: Tells seconds.

    Raises:
        UnknownNameError: If there is no such engine.
        InputError: If no engine can run the package as requested.
    """
    if plan.device == "cpu":
        require_precision_here(request.engine, request.precision)
    candidates = _candidates(package, plan, request)
    if len(candidates) == 1 or plan.device != "cpu":
        (only, *_) = candidates
        reason = "as requested" if request.engine != AUTO else _only_reason(package, plan)
        return Choice(only.engine, _planned(plan, only, reason), final=True)
    file = _measurement_path(package, cache_folder)
    with lock_if_writable(file.with_suffix(".lock")):
        speeds = _read(file)
        if not speeds.images_per_second and 0 < request.expected_images < _MIN_IMAGES:
            return _unmeasured(plan, candidates[0])
        for group in _groups(candidates):
            missing = [one for one in group if one.name not in speeds.images_per_second]
            if missing and _pays(missing, speeds, package, request, cache_folder):
                speeds = _measure(package, plan, missing, speeds, cache_folder, clock)
                _write(speeds, file)
    if not any(one.name in speeds.images_per_second for one in candidates):
        return _unmeasured(plan, candidates[0])  # another engine was measured before
    chosen = speeds.fastest(candidates)
    final = all(one.name in speeds.images_per_second for one in candidates)
    return Choice(chosen.engine, _planned(plan, chosen, speeds.reason(chosen)), final)


def _unmeasured(plan: ExecutionPlan, candidate: _Candidate) -> Choice:
    plan = _planned(plan, candidate, "too few images to measure others")
    return Choice(candidate.engine, plan, final=False)


def _planned(plan: ExecutionPlan, chosen: _Candidate, reason: str) -> ExecutionPlan:
    return replace(plan, precision=chosen.precision, reason=reason)


def _only_reason(package: ModelPackage, plan: ExecutionPlan) -> str:
    if package.manifest.quantization is not None:
        return "the package is quantized"
    if package.manifest.hosted is not None:
        return f"hosted at {package.manifest.hosted.url}"
    return plan.reason


# --- candidates -------------------------------------------------------------------------------


def _candidates(
    package: ModelPackage, plan: ExecutionPlan, request: EngineRequest
) -> list[_Candidate]:
    """Return the engines and precisions that are possible; eager float32 first, if it is."""
    engines = _usable_engines(request.engine, package.manifest, plan.device)
    precisions = _precisions(package, plan, request)
    return [_Candidate(engine, precision) for engine in engines for precision in precisions]


def _usable_engines(name: str, manifest: ModelManifest | None, device: str | None) -> list[Engine]:
    """Return the engine of a name, or for `auto` those that can run a model; eager first.

    Raises:
        UnknownNameError: If there is no such engine.
        UnsupportedError: If there is none that can.
    """
    if manifest is not None and manifest.hosted is not None:
        return [_hosted_engine(name, manifest)]
    graph = manifest if manifest is not None and manifest.has_graph else None
    kind = "imported" if graph is not None and graph.imported is not None else "quantized"
    names = (
        [name]
        if name != AUTO
        else dict.fromkeys([EagerEngine.name, OpenVinoEngine.name, *ENGINES.names()])
    )
    usable, faults = [], []
    for engine in map(ENGINES.get, names):
        if graph is not None and not engine.runs_graphs:
            if name != AUTO:
                faults.append(f"{name} runs no {kind} models; use --engine openvino or auto")
            continue
        fault = None if device is None else engine.unsupported(device)
        if fault is None:
            usable.append(engine)
        else:
            faults.append(f"{engine.name} {fault}")
    if not usable:
        about = "The" if graph is None else f"Model {graph.name!r} is {kind}, and the"
        raise UnsupportedError(f"{about} engine {'; the engine '.join(faults)}.")
    return usable


def _hosted_engine(name: str, manifest: ModelManifest) -> Engine:
    """Return what asks the server of a hosted model: its forward pass is a request.

    Raises:
        InputError: If another engine is named.
    """
    if name not in (AUTO, EagerEngine.name):
        raise InputError(
            f"Model {manifest.name!r} is hosted, and its server chooses the engine; leave --engine "
            "out."
        )
    return ENGINES.get(EagerEngine.name)


def _precisions(
    package: ModelPackage, plan: ExecutionPlan, request: EngineRequest
) -> list[NetworkPrecision]:
    quantized = _quantized_precision(package.manifest, request.precision)
    if quantized is not None:
        return [quantized]
    if package.manifest.hosted is not None:
        return ["float32"]
    if request.precision != "auto":
        return [request.precision]
    if plan.device != "cpu":
        return [plan.precision]
    return ["float32", "bfloat16"] if has_bfloat16(plan.device) else ["float32"]


def _quantized_precision(manifest: ModelManifest, precision: Precision) -> NetworkPrecision | None:
    """Return the precision of a quantized model; None for a float model.

    Raises:
        InputError: If the model is quantized, and another precision is asked for; or if it is
            hosted, and one is.
    """
    if manifest.hosted is not None and precision != AUTO:
        raise InputError(
            f"Model {manifest.name!r} is hosted, and its server chooses the precision; leave "
            "--precision out."
        )
    quantization = manifest.quantization
    if quantization is None:
        return None
    if precision not in (AUTO, quantization.precision):
        raise InputError(
            f"Model {manifest.name!r} is quantized to {quantization.precision} and cannot run in "
            f"{precision}; use the version that it was made from."
        )
    return quantization.precision


def _groups(candidates: Sequence[_Candidate]) -> list[list[_Candidate]]:
    """Return the candidates by engine, in order."""
    groups: dict[str, list[_Candidate]] = {}
    for one in candidates:
        groups.setdefault(one.engine.name, []).append(one)
    return list(groups.values())


def _pays(
    missing: Sequence[_Candidate],
    speeds: MeasuredSpeeds,
    package: ModelPackage,
    request: EngineRequest,
    cache_folder: Path,
) -> bool:
    """Whether the time that an engine may save exceeds the time to prepare and measure it."""
    known = speeds.images_per_second.values()
    cost = missing[0].engine.preparation_seconds(package, cache_folder)
    if not known or cost == 0 or math.isinf(request.expected_images):
        return True
    expected_seconds = request.expected_images / max(known)
    return expected_seconds * _EXPECTED_GAIN > cost + _MAX_SECONDS


# --- measurement ------------------------------------------------------------------------------


def _measure(
    package: ModelPackage,
    plan: ExecutionPlan,
    candidates: Sequence[_Candidate],
    known: MeasuredSpeeds,
    cache_folder: Path,
    clock: Clock,
) -> MeasuredSpeeds:
    """Time passes of candidates in turns, so that all see the same load of the machine.

    The first candidate that was measured before takes part again: the load may be another one now.
    """
    size = min(_BATCH_SIZE, plan.batch_size)
    plan = replace(plan, batch_size=size, num_callers=1)
    reference = next(iter(known.images_per_second), None)
    timed = list(candidates)
    if reference is not None:
        engine, precision = reference.split()
        timed.insert(0, _Candidate(ENGINES.get(engine), precision))  # type: ignore[arg-type]

    runs = _prepare(package, plan, timed, cache_folder)
    seconds = _time(runs, zero_inputs(package, size), clock)
    speeds = {name: size / taken for name, taken in seconds.items()}
    if reference is not None and reference in speeds:
        scale = known.images_per_second[reference] / speeds[reference]
        speeds = {name: speed * scale for name, speed in speeds.items()}
    unable = {one.name: _UNABLE for one in candidates if one.name not in speeds}
    return MeasuredSpeeds(images_per_second={**known.images_per_second, **speeds, **unable})


def _prepare(
    package: ModelPackage,
    plan: ExecutionPlan,
    candidates: Sequence[_Candidate],
    cache_folder: Path,
) -> dict[str, Run]:
    """Return the runs of the candidates that can run the network.

    Raises:
        InputError: If none can.
    """
    runs: dict[str, Run] = {}
    unable: set[str] = set()
    fault: InputError | None = None
    for one in candidates:
        if one.engine.name in unable:
            continue
        try:
            own_plan = replace(plan, precision=one.precision)
            runs[one.name] = one.engine.prepare(package, own_plan, cache_folder)
        except InputError as error:
            fault = error
            if isinstance(error, UnsupportedNetworkError):
                unable.add(one.engine.name)
    if fault is not None and not runs:
        raise fault
    return runs


def _time(runs: dict[str, Run], inputs: tuple[torch.Tensor, ...], clock: Clock) -> dict[str, float]:
    """Return the median seconds of a pass of each; those that fail are left out.

    Raises:
        InputError: If all of them fail.
    """
    begun = clock()
    times: dict[str, list[float]] = {}
    with torch.inference_mode():
        # The first passes also prepare kernels, and show who is out of the question.
        first = _first_passes(runs, inputs, clock)
        limit = max(_MAX_SECONDS, _HOPELESS_RATIO * min(first.values()))
        racing = {name: runs[name] for name, seconds in first.items() if seconds < limit}
        times = {name: [] for name in racing}
        for _ in range(_MAX_ROUNDS):
            for name, run in racing.items():
                times[name].append(_seconds(run, inputs, clock))
            if clock() - begun > _MAX_SECONDS:
                break
    return first | {name: statistics.median(seconds) for name, seconds in times.items()}


def _first_passes(
    runs: dict[str, Run], inputs: tuple[torch.Tensor, ...], clock: Clock
) -> dict[str, float]:
    """Return the seconds of the first pass of each that can run here.

    An engine may find out in a pass that it has no kernel for this CPU.
    """
    found = {}
    fault: RuntimeError | None = None
    for name, run in runs.items():
        try:
            found[name] = _seconds(run, inputs, clock)
        except RuntimeError as error:
            log.warning("%s cannot run the network here (%s)", name, str(error).split("\n", 1)[0])
            fault = error
    if fault is not None and not found:
        raise InputError(f"No engine can run the network on this machine ({fault}).") from fault
    return found


def _seconds(run: Run, inputs: tuple[torch.Tensor, ...], clock: Clock) -> float:
    started = clock()
    run(*inputs)
    return clock() - started


# --- the cache --------------------------------------------------------------------------------


def _measurement_path(package: ModelPackage, cache_folder: Path) -> Path:
    text = "\n".join((package.digest, *machine_fingerprint()))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_folder / "speeds" / f"{key}.json"


def _read(file: Path) -> MeasuredSpeeds:
    try:
        return MeasuredSpeeds.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # not measured yet; or damaged, and then measured again
        return MeasuredSpeeds()


def _write(speeds: MeasuredSpeeds, file: Path) -> None:
    temporary = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.write_text(speeds.model_dump_json())
        temporary.replace(file)
