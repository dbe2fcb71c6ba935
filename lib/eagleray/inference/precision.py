"""Chooses the precision of a network's forward passes by measuring them on this machine.

    plan = with_measured_precision(package, plan, cache_folder)    # plan.precision, plan.reason

That a CPU has instructions for bfloat16 does not mean that they are faster: on some Xeons without
AMX they take a third more time than float32. So a few passes of both are timed, once for each
package and machine, and the result is kept in the cache, where all processes of the machine find
it. Where both are about as fast and the network is to be compiled, from which one of them may gain
more than the other, both are compiled and timed again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, ValidationError

from eagleray.core.types import CompileMode
from eagleray.inference.engines import (
    ExecutionPlan,
    Run,
    machine_fingerprint,
    prepare,
    will_compile,
    zero_inputs,
)
from eagleray.models.package import ModelPackage

__all__ = ["MeasuredPrecision", "with_measured_precision"]

MIN_GAIN = 1.2
"""How many times as fast bfloat16 has to be: float32 is the more exact one."""

_CLOSE = 1.5
"""How many times as fast one has to be for compilation to change nothing about it."""

_BATCH_SIZE = 8
_MAX_ROUNDS = 5
_SECONDS = 1.0  # after which no further round begins
_HOPELESS = 3.0  # times the duration of a float32 pass; where bfloat16 is emulated, it takes more


class MeasuredPrecision(BaseModel):
    """The speed of a network's forward passes in both precisions on one machine.

    Attributes:
        float32: Images per second.
        bfloat16: Images per second.
        compiled: Whether the networks were compiled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    float32: PositiveFloat
    bfloat16: PositiveFloat
    compiled: bool = False

    @property
    def precision(self) -> Literal["float32", "bfloat16"]:
        """The precision to use."""
        return "bfloat16" if self.bfloat16 >= MIN_GAIN * self.float32 else "float32"

    @property
    def is_final(self) -> bool:
        """Whether no other measurement is needed, even where the network is to be compiled."""
        ratio = self.bfloat16 / self.float32
        return self.compiled or not 1 / _CLOSE < ratio < _CLOSE

    @property
    def reason(self) -> str:
        """Why, for a person."""
        float32, bfloat16 = (f"{speed:,.1f}" for speed in (self.float32, self.bfloat16))
        if self.precision == "bfloat16":
            return f"measured on this machine: {bfloat16} images/s, against {float32} in float32"
        few = self.bfloat16 > self.float32
        why = f", less than {MIN_GAIN:g} times as fast" if few else ""
        return f"measured on this machine: {float32} images/s, against {bfloat16} in bfloat16{why}"


def with_measured_precision(
    package: ModelPackage,
    plan: ExecutionPlan,
    *,
    compile_mode: CompileMode,
    expected_images: int,
    cache_folder: Path,
) -> ExecutionPlan:
    """Return the plan with the precision that is faster for a package on this machine.

    The first process that needs a measurement makes it, which takes a second or two, while others
    of the machine wait for it. Where the cache cannot be written, the measurement is not kept.

    Args:
        package: The model.
        plan: Of a CPU that has bfloat16.
        compile_mode: As for `prepare`.
        expected_images: As for `prepare`.
        cache_folder: Where measurements and compiled networks are kept.
    """
    file = _measurement_path(package, cache_folder)
    with _one_at_a_time(file):
        measured = _read(file)
        if measured is None:
            measured = _measure(package, plan, "never", cache_folder)
            _keep(measured, file)
        plan = replace(plan, precision=measured.precision, reason=measured.reason)
        if measured.is_final or not will_compile(
            package, plan, compile_mode, expected_images, cache_folder
        ):
            return plan
        measured = _measure(package, plan, "always", cache_folder)
        _keep(measured, file)
    return replace(plan, precision=measured.precision, reason=measured.reason)


def _measurement_path(package: ModelPackage, cache_folder: Path) -> Path:
    key = hashlib.sha256("\n".join((package.digest, *machine_fingerprint())).encode()).hexdigest()[
        :32
    ]
    return cache_folder / "precision" / f"{key}.json"


@contextlib.contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Let one process of this machine at a time into the block, where the cache allows that."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however that ends
        yield


def _read(file: Path) -> MeasuredPrecision | None:
    try:
        return MeasuredPrecision.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):  # not measured yet, or damaged, and then measured again
        return None


def _keep(measured: MeasuredPrecision, file: Path) -> None:
    beside = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        beside.write_text(measured.model_dump_json())
        beside.replace(file)


def _measure(
    package: ModelPackage,
    plan: ExecutionPlan,
    compile_mode: Literal["always", "never"],
    cache_folder: Path,
) -> MeasuredPrecision:
    """Time passes of both precisions in turns, so that both see the same moments of the machine."""
    compiled = compile_mode == "always"
    size = plan.batch_size if compiled else min(_BATCH_SIZE, plan.batch_size)
    inputs = zero_inputs(package, size)
    plans: list[ExecutionPlan] = [
        replace(plan, precision="float32", batch_size=size),
        replace(plan, precision="bfloat16", batch_size=size),
    ]
    float32, bfloat16 = (
        prepare(
            package, one, compile_mode=compile_mode, expected_images=0, cache_folder=cache_folder
        )[0]
        for one in plans
    )
    begun = time.perf_counter()
    with torch.inference_mode():
        rounds = [[_seconds(run, inputs) for run in (float32, bfloat16)]]
        if rounds[0][1] < max(_SECONDS, _HOPELESS * rounds[0][0]):
            rounds = []  # the first passes also prepare kernels
            while not rounds or (
                len(rounds) < _MAX_ROUNDS and time.perf_counter() - begun < _SECONDS
            ):
                rounds.append([_seconds(run, inputs) for run in (float32, bfloat16)])
    slow, fast = (size / statistics.median(column) for column in zip(*rounds, strict=True))
    return MeasuredPrecision(float32=slow, bfloat16=fast, compiled=compiled)


def _seconds(run: Run, inputs: tuple[torch.Tensor, ...]) -> float:
    started = time.perf_counter()
    run(*inputs)
    return time.perf_counter() - started
