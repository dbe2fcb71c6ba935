"""The predictor alone, without Ray: from JPEG bytes in memory to labels, and where the time goes.

    make bench-gpu PHOTOS=folder
    python -m tests.bench.gpu --photos FOLDER
    python -m tests.bench.gpu --photos FOLDER --device cpu --images 64 --architecture resnet18

Images a second of the forward pass alone (pixels already on the device), of `Predictor.predict`
under two contracts (decode on the CPU cores), and of decode, resize and crop on the GPU by nvJPEG,
which is no contract's way and is here to know what it would bring. Then each stage alone, and how
many labels agree with float32 on the CPU. Rounds are interleaved and each begins with another one;
medians and ranges are printed. Compilation and warm-up come before and are not in them.

The weights are random and centred on the photographs, so that many of them lie at a border between
labels: fewer agree than under a trained network.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from eagleray.models.package import read_package
from tests.bench.batch import machine, note, spread
from tests.bench.folders import photos_of
from tests.bench.gpu_ways import (
    COPY,
    FORWARD,
    LABELS,
    NVJPEG,
    NVJPEG_DECODE,
    Options,
    Setup,
    Way,
    decode_way,
    make_setup,
    measure,
    one_thread_way,
    predict_way,
    predictions_of_all,
    ways_of,
)
from tests.bench.peers.weights import REFERENCE_CONTRACT, write_weights
from tests.bench.predictions import Predictions, agreement

CONTRACTS = ("fast", REFERENCE_CONTRACT)
JPEG_START = b"\xff\xd8"
IMAGES_ON_GPU, IMAGES_ON_CPU = 8192, 128


def main() -> None:
    options, folder, architecture = parse_options()
    paths = [path for path in photos_of(folder) if path.read_bytes().startswith(JPEG_START)]
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as work:
        packages = {}
        for name in CONTRACTS:
            weights = write_weights(paths, Path(work) / name, name, architecture)
            packages[name] = read_package(str(weights.package))
    setup = make_setup(options, [path.read_bytes() for path in paths], packages, note)
    ways = ways_of(setup, note)
    times = measure(ways, options.rounds, options.device)
    show_setup(setup, architecture)
    show_speeds(ways, times)
    for name in CONTRACTS:
        show_stages(setup, name, times)
    show_predictions(setup)


# --- tables ---------------------------------------------------------------------------------------


def show_setup(setup: Setup, architecture: str) -> None:
    plan = setup.reference.plan
    device = torch.cuda.get_device_name(plan.device) if setup.on_cuda else "no GPU"
    size = statistics.mean(len(photo) for photo in setup.photos) / 1000
    print(f"\n{machine()}; {device}")
    print(
        f"{architecture}, {plan.precision}, {setup.reference.passes.engine.name}, "
        f"batches of {setup.batch_size}, {setup.reference.decode_threads} decoding thread(s); "
        f"{setup.num_images:,} images in memory, from {len(setup.photos)} photographs of "
        f"{size:.0f} kB on average."
    )
    if setup.no_nvjpeg:
        print(f"{NVJPEG}: skipped, {setup.no_nvjpeg}.")
    else:
        print(f"{NVJPEG}: refuses {setup.num_refused} of the photographs, which are skipped there.")


def show_speeds(ways: Sequence[Way], times: dict[str, list[float]]) -> None:
    rounds = len(next(iter(times.values())))
    print(f"\nMedian of {rounds} interleaved rounds (and range).\n")
    print("| from where to where | images/s |\n|---|---|")
    for way in ways:
        if way.is_whole:
            print(f"| {way.name} | {spread([1 / time for time in times[way.name]], ',.0f')} |")


def show_stages(setup: Setup, contract: str, times: dict[str, list[float]]) -> None:
    """Print each stage's time alone, as a share of them all and of the overlapped whole."""
    microseconds = {name: 1e6 * statistics.median(values) for name, values in times.items()}
    names = [decode_way(contract), COPY, FORWARD, LABELS]
    stages = {name: microseconds[name] for name in names if name in microseconds}
    whole, together = microseconds[predict_way(contract)], sum(stages.values())
    print(f"\nContract {contract}: each stage alone, and the whole with its stages overlapped.\n")
    print("| stage | µs an image | share of the sum | of the whole |\n|---|---|---|---|")
    for name, value in stages.items():
        print(f"| {name} | {value:.1f} | {value / together:.0%} | {value / whole:.0%} |")
    print(f"| sum | {together:.1f} | 100% | {together / whole:.0%} |")
    print(f"| {predict_way(contract)} | {whole:.1f} | | 100% |")
    one, threads = microseconds[one_thread_way(contract)], setup.reference.decode_threads
    print(
        f"\nOne thread decodes an image in {one:.0f} µs; {threads} do the work of "
        f"{one / microseconds[decode_way(contract)]:.1f}."
    )
    if contract == REFERENCE_CONTRACT and NVJPEG_DECODE in microseconds:
        print(f"{NVJPEG_DECODE}: {microseconds[NVJPEG_DECODE]:.1f} µs an image.")


def show_predictions(setup: Setup) -> None:
    given, float32 = predictions_of_all(setup)
    reference = given[predict_way(REFERENCE_CONTRACT)]
    print("\nShare of the photographs that get the same label.\n")
    print(
        "| program | as float32, same contract | as float32, reference contract | as `predict`, "
        "reference contract |\n|---|---|---|---|"
    )
    for contender, predictions in given.items():
        others = (float32.get(contender), float32[predict_way(REFERENCE_CONTRACT)], reference)
        cells = [
            ""
            if other is None
            else f"{agreement(predictions, among(other, predictions)).same_label:.1%}"
            for other in others
        ]
        print(f"| {contender} | " + " | ".join(cells) + " |")


def among(predictions: Predictions, others: Predictions) -> Predictions:
    """Return the predictions of the images that others predicted."""
    return {name: predictions[name] for name in others}


# --- the command line -----------------------------------------------------------------------------


def parse_options() -> tuple[Options, Path, str]:
    """Return how to run, the folder of photographs and the architecture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, required=True, help="Folder of JPEG photographs.")
    add("--architecture", default="resnet50", help="Of torchvision.")
    add("--device", default="auto", help="auto, cpu, cuda, …")
    add("--images", type=int, help="Images in memory: photographs, repeated.")
    add("--rounds", type=int, default=5, help="Rounds that are timed.")
    add("--batch-size", type=int, help="Images in a forward pass; the predictor's choice if left.")
    add("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    add("--decode-threads", type=int, help="The predictor's choice if left.")
    values = vars(parser.parse_args())
    if values["device"] == "auto":
        values["device"] = "cuda" if torch.cuda.is_available() else "cpu"
    if values["images"] is None:
        values["images"] = IMAGES_ON_CPU if values["device"] == "cpu" else IMAGES_ON_GPU
    folder, architecture = values.pop("photos"), values.pop("architecture")
    return Options(**values), folder, architecture


if __name__ == "__main__":
    main()
