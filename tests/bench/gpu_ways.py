"""The measurements of the GPU bench: every way from JPEG bytes to labels, and every stage alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from eagleray.core.types import Precision
from eagleray.imaging.geometry import frame_of
from eagleray.inference.decode_ahead import DecodedBatch, decode_ahead
from eagleray.inference.predictor import Predictor
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage
from eagleray.tasks.outcome import Outcome
from tests.bench.nvjpeg import accepted, decode_on_device, why_not
from tests.bench.peers.weights import REFERENCE_CONTRACT
from tests.bench.predictions import Predictions

__all__ = [
    "COPY",
    "FORWARD",
    "LABELS",
    "NVJPEG",
    "NVJPEG_DECODE",
    "Options",
    "Setup",
    "Way",
    "decode_way",
    "make_setup",
    "measure",
    "one_thread_way",
    "predict_way",
    "predictions_of_all",
    "ways_of",
]

FORWARD = "forward only"
COPY, LABELS = "copy to the device", "labels from outputs"
NVJPEG = "JPEG bytes to labels, decode by nvJPEG (no contract's way)"
NVJPEG_DECODE = "decode, resize and crop by nvJPEG and PyTorch, alone"

DIFFERENT_BATCHES = 4  # of a stage alone; one batch over and over might stay in a cache
FLOAT32_BATCH = 32

Note = Callable[[str], None]


def predict_way(contract: str) -> str:
    return f"JPEG bytes to labels, `predict`, contract {contract}"


def decode_way(contract: str) -> str:
    return f"decode, contract {contract}"


def one_thread_way(contract: str) -> str:
    return f"decode on one thread, contract {contract}"


@dataclass(frozen=True, slots=True)
class Options:
    """How to run; `python -m tests.bench.gpu --help` describes each."""

    device: str
    images: int
    rounds: int
    batch_size: int | None
    precision: Precision
    decode_threads: int | None


@dataclass(frozen=True, slots=True)
class Way:
    """Something that is timed.

    Attributes:
        name: For a table.
        run: Does it; what it leaves on the device is waited for.
        num_images: Images that a run takes.
        is_whole: Whether it is compared with others, rather than a stage of one.
    """

    name: str
    run: Callable[[], object]
    num_images: int
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Setup:
    """The setup that all ways share.

    Attributes:
        options: Of the command line.
        photos: JPEGs, all different.
        num_images: A multiple of the batch size.
        predictors: One for each contract, by its name.
        nvjpeg_photos: Those photographs that nvJPEG decodes.
        no_nvjpeg: Why it decodes none; empty where it does.
    """

    options: Options
    photos: Sequence[bytes]
    num_images: int
    predictors: Mapping[str, Predictor]
    nvjpeg_photos: Sequence[bytes]
    no_nvjpeg: str

    @property
    def device(self) -> str:
        return self.options.device

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def reference(self) -> Predictor:
        return self.predictors[REFERENCE_CONTRACT]

    @property
    def batch_size(self) -> int:
        return self.reference.plan.batch_size

    @property
    def num_refused(self) -> int:
        return len(self.photos) - len(self.nvjpeg_photos)


def make_setup(
    options: Options, photos: Sequence[bytes], packages: Mapping[str, ModelPackage], note: Note
) -> Setup:
    """Make the predictors, compiling what the cache does not have, and see what nvJPEG reads."""
    predictors = {
        name: make_predictor(name, package, options, note) for name, package in packages.items()
    }
    reference = predictors[REFERENCE_CONTRACT]
    size = reference.plan.batch_size
    no_nvjpeg = why_not(options.device, reference.package.contract)
    nvjpeg_photos = [] if no_nvjpeg else accepted(photos, options.device)
    if not no_nvjpeg and not nvjpeg_photos:
        no_nvjpeg = "it decodes none of the photographs"
    num_images = max(options.images // size, 1) * size
    return Setup(options, photos, num_images, predictors, nvjpeg_photos, no_nvjpeg)


def make_predictor(name: str, package: ModelPackage, options: Options, note: Note) -> Predictor:
    """Make a predictor and say what it took."""
    started = time.perf_counter()
    predictor = Predictor(
        package,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        decode_threads=options.decode_threads,
        expected_images=options.images,
    )
    note(f"{name}: {predictor.engine}, ready in {time.perf_counter() - started:.1f} s")
    return predictor


# --- the ways -------------------------------------------------------------------------------------


def ways_of(setup: Setup, note: Note) -> list[Way]:
    """Everything that is timed."""
    reference, count = setup.reference, setup.num_images
    images = repeated(setup.photos, count)
    pixels = [
        batch.pixels
        for batch in decoded(setup, reference, images[: DIFFERENT_BATCHES * setup.batch_size])
    ]
    on_device = [batch.to(setup.device) for batch in pixels]
    ways = [Way(FORWARD, partial(forward, reference, on_device, count), count, is_whole=True)]
    for name, predictor in setup.predictors.items():
        run = partial(predict, predictor, images)
        on_one = partial(decode_in_turn, predictor, setup.photos)
        ways += [
            Way(predict_way(name), run, count, is_whole=True),
            Way(decode_way(name), partial(decode_all, setup, predictor, images), count),
            Way(one_thread_way(name), on_one, len(setup.photos)),
        ]
    if setup.on_cuda:
        ways.append(Way(COPY, partial(copy, pixels, setup.device), sum(map(len, pixels))))
    if not setup.no_nvjpeg:
        images = repeated(setup.nvjpeg_photos, count)
        run_nvjpeg = partial(classify_by_nvjpeg, setup, images)
        ways.append(Way(NVJPEG, run_nvjpeg, count, is_whole=True))
        ways.append(Way(NVJPEG_DECODE, partial(exhaust, decode_by_nvjpeg, setup, images), count))
    outputs = reference.forward(pixels[0].numpy())
    ways.append(Way(LABELS, partial(make_outcomes, reference, outputs), len(outputs)))
    return ways


def repeated(photos: Sequence[bytes], count: int) -> list[bytes]:
    """So many images in memory, each in a place of its own, as a caller's would be."""
    return [bytes(bytearray(photo)) for photo in islice(cycle(photos), count)]


def predict(predictor: Predictor, images: Sequence[bytes]) -> list[Outcome]:
    outcomes = predictor.predict(images)
    if bad := [outcome.failure.message for outcome in outcomes if outcome.failure]:
        raise RuntimeError(f"{len(bad)} photographs have no prediction; the first: {bad[0]}")
    return outcomes


def forward(predictor: Predictor, batches: Sequence[Tensor], num_images: int) -> None:
    """Run passes as `predict` does, from uint8 pixels to probabilities, all of it on the device."""
    with torch.inference_mode():
        for batch in islice(cycle(batches), num_images // len(batches[0])):
            predictor.task.activate(predictor.passes.run(batch))


def decoded(setup: Setup, predictor: Predictor, images: Sequence[bytes]) -> Iterator[DecodedBatch]:
    return decode_ahead(
        images,
        predictor.preprocess,
        shape=predictor.package.contract.shape,
        batch_size=setup.batch_size,
        num_threads=predictor.decode_threads,
        pin_memory=setup.on_cuda,
    )


def decode_all(setup: Setup, predictor: Predictor, images: Sequence[bytes]) -> None:
    """Decode as `predict` does."""
    if predictor.decode_threads == 1:
        decode_in_turn(predictor, images)
    else:
        exhaust(decoded, setup, predictor, images)


def decode_in_turn(predictor: Predictor, images: Sequence[bytes]) -> None:
    for image in images:
        predictor.preprocess(image)


def copy(batches: Sequence[Tensor], device: str) -> None:
    """Copy batches from page-locked memory."""
    for batch in batches:
        batch.to(device, non_blocking=True)


def make_outcomes(predictor: Predictor, outputs: np.ndarray) -> None:
    for row in outputs:
        frame = frame_of(predictor.package.contract, 640, 480)
        Outcome(predictor.task.postprocess(row, frame), width=640, height=480)


def decode_by_nvjpeg(setup: Setup, images: Sequence[bytes]) -> Iterator[Tensor]:
    contract = setup.reference.package.contract
    for start in range(0, len(images), setup.batch_size):
        yield decode_on_device(images[start : start + setup.batch_size], contract, setup.device)


def classify_by_nvjpeg(setup: Setup, images: Sequence[bytes]) -> Predictions:
    """Decode on the GPU, then the reference contract's network.

    Returns:
        The predictions by the number of the image.
    """
    reference = setup.reference
    best = []
    with torch.inference_mode():
        for batch in decode_by_nvjpeg(setup, images):
            padded = torch.nn.functional.pad(batch, (0,) * 7 + (setup.batch_size - len(batch),))
            outputs = reference.task.activate(reference.passes.run(padded)[: len(batch)])
            best.append(outputs.max(dim=1))
        scores, labels = (torch.cat(parts).tolist() for parts in zip(*best, strict=True))
    return numbered(reference.package, labels, scores)


def exhaust(make: Callable[..., Iterator[object]], *arguments: object) -> None:
    for _ in make(*arguments):
        pass


# --- time -----------------------------------------------------------------------------------------


def measure(ways: Sequence[Way], rounds: int, device: str) -> dict[str, list[float]]:
    """Run every way in each round, one more to warm up, each round beginning with another one.

    Returns:
        Seconds an image, for each round.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        first = number % len(ways)
        for way in [*ways[first:], *ways[:first]]:
            wait_for(device)
            started = time.perf_counter()
            way.run()
            wait_for(device)
            if number:
                times[way.name].append((time.perf_counter() - started) / way.num_images)
    return times


def wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


# --- predictions ----------------------------------------------------------------------------------


def predictions_of_all(setup: Setup) -> tuple[dict[str, Predictions], dict[str, Predictions]]:
    """Return the predictions of every way to the photographs, and float32's under each contract."""
    given, float32 = {}, {}
    for name, predictor in setup.predictors.items():
        predictions = [outcome.prediction for outcome in predict(predictor, setup.photos)]
        given[predict_way(name)] = {
            str(number): (str(one.label), float(one.score or 0))
            for number, one in enumerate(predictions)
            if one is not None
        }
        float32[predict_way(name)] = float32_predictions(predictor, setup.photos)
    if not setup.no_nvjpeg:
        places = {photo: str(number) for number, photo in enumerate(setup.photos)}
        by_nvjpeg = classify_by_nvjpeg(setup, setup.nvjpeg_photos)
        given[NVJPEG] = {
            places[photo]: by_nvjpeg[str(number)]
            for number, photo in enumerate(setup.nvjpeg_photos)
        }
    return given, float32


def float32_predictions(predictor: Predictor, photos: Sequence[bytes]) -> Predictions:
    """Predict in float32 on the CPU, without reduced precision, from the contract's pixels."""
    package = predictor.package
    network = ImageNetwork(package.build_module(), package.contract).eval()
    images = [predictor.preprocess(photo) for photo in photos]
    pixels = np.stack([image.pixels for image in images if not isinstance(image, Outcome)])
    with torch.inference_mode():
        parts = torch.split(torch.from_numpy(pixels), FLOAT32_BATCH)
        outputs = torch.cat([package.task.activate(network(part)) for part in parts])
    scores, labels = (values.tolist() for values in outputs.max(dim=1))
    return numbered(package, labels, scores)


def numbered(package: ModelPackage, labels: Sequence[int], scores: Sequence[float]) -> Predictions:
    names = package.task.labels
    return {
        str(number): (names[label], score)
        for number, (label, score) in enumerate(zip(labels, scores, strict=True))
    }
