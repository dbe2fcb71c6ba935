"""Chooses the precision of a network's forward passes by measuring both on this machine.

    plan = with_measured_precision(package, plan, cache_folder=…)   # plan.precision, plan.reason

A CPU may have instructions for bfloat16 that are slower than those for float32: on some Xeons
without AMX they take a third more time. So a few passes of both are timed, once for each package
and machine, and the result is kept in the cache for all processes of the machine. If both are about
as fast and the network will be compiled, which may speed up one more than the other, both are
compiled and timed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from eagleray.core.types import CompileMode
from eagleray.inference.compiled import CompiledEngine
from eagleray.inference.eager import EagerEngine
from eagleray.inference.engine import ENGINES, Engine, Run, zero_inputs
from eagleray.inference.engines import choose_engine
from eagleray.inference.plan import ExecutionPlan, machine_fingerprint
from eagleray.models.package import ModelPackage

__all__ = ["MeasuredPrecision", "with_measured_precision"]

MIN_GAIN = 1.2
"""The speed of bfloat16 relative to float32, which is more exact, from which on it is chosen."""

_CLEAR_RATIO = 1.5  # of the speeds; compilation does not change which one is faster
_BATCH_SIZE = 8
_MAX_ROUNDS = 5
_MAX_SECONDS = 1.0  # after which no further round begins
_EMULATED_RATIO = 3.0  # of a bfloat16 pass to a float32 pass, from which on it is not timed again

Clock = Callable[[], float]


class MeasuredPrecision(BaseModel):
    """The speed of a network's forward passes in both precisions on one machine.

    Attributes:
        float32: Images per second in float32.
        bfloat16: Images per second in bfloat16.
        compiled: Whether the measured networks were compiled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    float32: PositiveFloat
    bfloat16: PositiveFloat
    compiled: bool = False

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """The precision to use: bfloat16 if it is clearly faster."""
        return "bfloat16" if self.bfloat16 >= MIN_GAIN * self.float32 else "float32"

    @property
    def is_final(self) -> bool:
        """Whether compiled networks need not be measured too."""
        ratio = self.bfloat16 / self.float32
        return self.compiled or not 1 / _CLEAR_RATIO < ratio < _CLEAR_RATIO

    @property
    def reason(self) -> str:
        """Why this precision is used, for display."""
        float32, bfloat16 = (f"{speed:,.1f}" for speed in (self.float32, self.bfloat16))
        if self.precision == "bfloat16":
            return f"measured on this machine: {bfloat16} images/s, against {float32} in float32"
        faster = self.bfloat16 > self.float32
        but = f", less than {MIN_GAIN:g} times as fast" if faster else ""
        return f"measured on this machine: {float32} images/s, against {bfloat16} in bfloat16{but}"


def with_measured_precision(
    package: ModelPackage,
    plan: ExecutionPlan,
    *,
    compile_mode: CompileMode,
    expected_images: int,
    cache_folder: Path,
    clock: Clock = time.perf_counter,
) -> ExecutionPlan:
    """Return the plan with the precision that is faster for a package on this machine.

    The first process that needs a measurement makes it, which takes a second or two, while other
    processes of the machine wait for it. If the cache cannot be written, the result is not kept.

    Args:
        package: The model package.
        plan: A plan for a CPU that has bfloat16.
        compile_mode: The argument of `choose_engine`.
        expected_images: The argument of `choose_engine`.
        cache_folder: The folder of measurements and compiled networks.
        clock: Tells seconds.
    """
    file = _measurement_path(package, cache_folder)
    eager, compiled = ENGINES.get(EagerEngine.name), ENGINES.get(CompiledEngine.name)
    with _exclusive(file):
        measured = _read(file)
        if measured is None:
            measured = _measure(package, plan, eager, cache_folder, clock)
            _write(measured, file)
        plan = replace(plan, precision=measured.precision, reason=measured.reason)
        if measured.is_final:
            return plan
        engine = choose_engine(
            package,
            plan,
            compile_mode=compile_mode,
            expected_images=expected_images,
            cache_folder=cache_folder,
        )
        if engine is not compiled:
            return plan
        measured = _measure(package, plan, compiled, cache_folder, clock)
        _write(measured, file)
    return replace(plan, precision=measured.precision, reason=measured.reason)


def _measurement_path(package: ModelPackage, cache_folder: Path) -> Path:
    text = "\n".join((package.digest, *machine_fingerprint()))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_folder / "precision" / f"{key}.json"


@contextlib.contextmanager
def _exclusive(file: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block, if the cache can be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however that ends
        yield


def _read(file: Path) -> MeasuredPrecision | None:
    try:
        return MeasuredPrecision.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # not measured yet; or damaged, and then measured again
        return None


def _write(measured: MeasuredPrecision, file: Path) -> None:
    temporary = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.write_text(measured.model_dump_json())
        temporary.replace(file)


def _measure(
    package: ModelPackage, plan: ExecutionPlan, engine: Engine, cache_folder: Path, clock: Clock
) -> MeasuredPrecision:
    """Time passes of both precisions in turns, so that both see the same load of the machine."""
    compiled = engine.fixed_batch_size
    size = plan.batch_size if compiled else min(_BATCH_SIZE, plan.batch_size)
    inputs = zero_inputs(package, size)

    def prepare(precision: Literal["float32", "bfloat16"]) -> Run:
        measured_plan = replace(plan, precision=precision, batch_size=size)
        return engine.prepare(package, measured_plan, cache_folder)

    runs = [prepare("float32"), prepare("bfloat16")]
    begun = clock()
    with torch.inference_mode():
        rounds = [[_seconds(run, inputs, clock) for run in runs]]
        if rounds[0][1] < max(_MAX_SECONDS, _EMULATED_RATIO * rounds[0][0]):
            rounds = []  # the first passes also prepare kernels
            while not rounds or (len(rounds) < _MAX_ROUNDS and clock() - begun < _MAX_SECONDS):
                rounds.append([_seconds(run, inputs, clock) for run in runs])
    float32, bfloat16 = (size / statistics.median(times) for times in zip(*rounds, strict=True))
    return MeasuredPrecision(float32=float32, bfloat16=bfloat16, compiled=compiled)


def _seconds(run: Run, inputs: tuple[torch.Tensor, ...], clock: Clock) -> float:
    started = clock()
    run(*inputs)
    return clock() - started
