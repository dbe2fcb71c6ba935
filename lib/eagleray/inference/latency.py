"""Measures how fast a model predicts on this machine, one image at a time and many at once.

    latency = measure_latency(package)
    latency.keeps(33.3)        # whether a video of 30 frames a second can be classified

The images are the golden images of the package, as encoded files: decoding is part of the time.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt

from eagleray.core.system import cpu_model, num_usable_cores
from eagleray.core.types import Precision

if TYPE_CHECKING:  # takes seconds to import, and the records of a registry need none of it
    from eagleray.inference.predictor import Predictor
    from eagleray.models.package import ModelPackage

__all__ = ["FRAME_MILLISECONDS", "HOSTED", "Latency", "measure_latency"]

HOSTED = "hosted"
"""Engine of a model that another server runs."""

FRAME_MILLISECONDS = 33.3
"""The time for a frame of a video with 30 frames a second."""

_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_MIN_CALLS = 20
_MAX_CALLS = 300

Clock = Callable[[], float]


class Latency(BaseModel):
    """How fast a model predicts on one machine; decoding is included.

    Attributes:
        machine: Processor model, or name of the GPU.
        num_cores: Number of usable cores.
        engine: Name of the engine; `hosted` for another server.
        precision: Precision of the network, or of the tensors that are sent to a server.
        p50: Median of the time for one image, in milliseconds.
        p95: 95th percentile of the time for one image, in milliseconds.
        best_batch: Number of images in a call that gives the most images per second.
        images_per_second: Images per second with that number.
        memory_bytes: Resident memory of the process that measured.
        network_bytes: Size of the file with the network.
        created: UTC time of the measurement in ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    num_cores: PositiveInt
    engine: str
    precision: str
    p50: PositiveFloat
    p95: PositiveFloat
    best_batch: PositiveInt
    images_per_second: PositiveFloat
    memory_bytes: NonNegativeInt
    network_bytes: NonNegativeInt
    created: str

    def keeps(self, milliseconds: float) -> bool:
        """Whether 95 of 100 images take no longer than this."""
        return self.p95 <= milliseconds

    @property
    def place(self) -> tuple[str, int, str]:
        """What a later measurement replaces: the machine and its device."""
        return self.machine, self.num_cores, self.engine


def measure_latency(
    package: ModelPackage,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: Precision = "auto",
    seconds: float = 5.0,
    cache_folder: Path | None = None,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Measure a model on this machine, on the engine that is fastest here.

    Args:
        package: The model package.
        device: Device of PyTorch.
        engine: Name of the engine; `auto` measures all and takes the fastest one.
        precision: Precision of the network.
        seconds: Time to spend on single images, and again on batches.
        cache_folder: The folder of measurements and converted networks.
        clock: Tells seconds.

    Raises:
        InputError: If the engine cannot run the model on the device.
        PackageError: If the model fails its golden images.
    """
    import psutil

    from eagleray.inference.predictor import Predictor

    predictor = Predictor(
        package,
        device=device,
        engine=engine,
        precision=precision,
        batch_size=max(_BATCH_SIZES),
        expected_images=math.inf,
        cache_folder=cache_folder,
    )
    predictor.require_healthy()
    images, attributes = _inputs(package)
    single = _time_calls(predictor, images, attributes, 1, _MIN_CALLS, seconds, clock)
    best_batch, fastest = _time_batches(predictor, images, attributes, seconds, clock)
    return Latency(
        machine=_machine(predictor.plan.device),
        num_cores=num_usable_cores(),
        engine=HOSTED if package.manifest.hosted else predictor.passes.engine.name,
        precision=predictor.plan.precision,
        p50=1000 * _percentile(single, 0.5),
        p95=1000 * _percentile(single, 0.95),
        best_batch=best_batch,
        images_per_second=fastest,
        memory_bytes=psutil.Process().memory_info().rss,
        network_bytes=len(package.files[package.manifest.network_file]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _inputs(package: ModelPackage) -> tuple[list[bytes], list[dict[str, object]]]:
    """Return the golden images with their attributes, or a black image if there are none."""
    golden = package.golden.images
    if golden:
        return [package.files[one.file] for one in golden], [{**one.attributes} for one in golden]
    from PIL import Image

    height, width = package.contract.size
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="JPEG")
    return [buffer.getvalue()], [{one.name: None for one in package.attributes}]


def _time_batches(
    predictor: Predictor,
    images: Sequence[bytes],
    attributes: Sequence[dict[str, object]],
    seconds: float,
    clock: Clock,
) -> tuple[int, float]:
    """Return the best number of images in a call, and its images per second."""
    speeds: dict[int, float] = {}
    for size in _BATCH_SIZES:
        share = seconds / len(_BATCH_SIZES)
        times = _time_calls(predictor, images, attributes, size, 1, share, clock)
        speeds[size] = size * len(times) / sum(times)
    best = max(speeds, key=lambda size: speeds[size])
    return best, speeds[best]


def _time_calls(
    predictor: Predictor,
    images: Sequence[bytes],
    attributes: Sequence[dict[str, object]],
    size: int,
    min_calls: int,
    seconds: float,
    clock: Clock,
) -> list[float]:
    """Return the seconds of calls with `size` images, after `min_calls` calls that warm up.

    There are `min_calls` timed calls at least, `_MAX_CALLS` at most, and between these as many as
    begin within `seconds`.
    """
    times: list[float] = []
    begun = clock()
    for number in range(min_calls + _MAX_CALLS):
        rows = [(number + at) % len(images) for at in range(size)]
        batch, known = [images[row] for row in rows], [attributes[row] for row in rows]
        started = clock()
        predictor.predict(batch, known)
        ended = clock()
        times.append(ended - started)
        if len(times) >= 2 * min_calls and ended - begun > seconds:
            break
    return times[min_calls:]


def _percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _machine(device: str) -> str:
    if device == "cpu":
        return cpu_model()
    import torch

    return torch.cuda.get_device_name(device)
