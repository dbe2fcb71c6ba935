"""Times batch jobs against common alternatives: whole processes, on the same photographs.

    make bench-batch PHOTOS=folder
    python -m tests.bench.batch --photos FOLDER
    python -m tests.bench.batch --photos FOLDER --images 100 --rounds 1 --only ours,dataloader
    python -m tests.bench.batch --flat 5000,50000

Every contender runs one network with the same random weights, from the start of a process to its
committed output, in interleaved rounds on one machine. The folder is filled with hard links, so all
find it in the page cache. `ours` finds its measured engine in the cache; `ours-int8` does so too,
and is the same network quantized. `ours-cold` finds no cache of any kind, and so do `ours-float32`
and `ours-bfloat16` (by `--only`), which get the precision that the others choose by measuring.
Memory is measured in rounds of their own, which come first and are not timed. `--flat` measures our
memory on folders of different sizes, of the same small images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eagleray.core.system import cpu_model
from tests.bench.contenders import (
    COLD,
    CONTENDERS,
    FIXED_PRECISIONS,
    HAND_LOOP,
    INT8,
    OURS,
    REFERENCE,
    Setup,
)
from tests.bench.folders import fill_folder, photos_of, write_small_images
from tests.bench.memory import MEMORY_KIND, Peak, peak_memory, seconds_of
from tests.bench.peers.weights import REFERENCE_CONTRACT, write_weights
from tests.bench.predictions import Predictions, agreement, read_predictions, steady_state

NUM_DIFFERENT_SMALL = 200
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line; `--help` describes each."""

    photos: Path | None
    images: int
    rounds: int
    memory_rounds: int
    only: tuple[str, ...]
    flat: tuple[int, ...]
    contract: str
    network: str
    work: Path | None
    peers: Path
    json: Path | None


@dataclass(frozen=True)
class Figures:
    """Measurements of one contender, a value for each round."""

    seconds: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    peaks: list[Peak] = field(default_factory=list)


class Record:
    """All measurements so far as a JSON file, which an interrupted bench keeps."""

    def __init__(self, options: Options) -> None:
        self._file = options.json
        self._content: dict[str, Any] = {
            "machine": machine(),
            "memory": MEMORY_KIND,
            "images": options.images,
            "contract": options.contract,
            "network": options.network,
        }

    def put(self, **parts: Any) -> None:
        self._content |= parts
        if self._file is not None:
            self._file.write_text(json.dumps(self._content, indent=2) + "\n")


def main() -> None:
    options = parse_options()
    record = Record(options)
    # SIGTERM also ends the programs that run: an exception does that, a signal's default does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="bench-batch-", dir=options.work) as folder:
        if options.flat:
            compare_sizes(options, Path(folder), record)
        if options.photos is not None:
            compare_peers(options, photos_of(options.photos), Path(folder), record)


# --- against others -------------------------------------------------------------------------------


def compare_peers(options: Options, photos: Sequence[Path], folder: Path, record: Record) -> None:
    images = folder / "images"
    fill_folder(images, photos, options.images)
    weights = write_weights(photos, folder / "package", options.contract, options.network)
    setup = Setup(images, weights, options.network, folder, options.peers)
    if {OURS, HAND_LOOP} & set(options.only):
        setup.warm_up()
    if INT8 in options.only:
        assert options.photos is not None
        setup.quantize(options.photos)
    figures, predictions = measure(options, setup, record)
    show_times(options, figures)
    show_memory(figures)
    show_predictions(predictions, record)


def measure(
    options: Options, setup: Setup, record: Record
) -> tuple[dict[str, Figures], dict[str, Predictions]]:
    """Run all contenders in rounds; each round begins with another one.

    Returns:
        The figures of all rounds and the predictions of the last; every run predicted every image.
    """
    figures = {contender: Figures() for contender in options.only}
    predictions: dict[str, Predictions] = {}
    for number in range(options.memory_rounds + options.rounds):
        first = number % len(options.only)
        for contender in options.only[first:] + options.only[:first]:
            own, program = figures[contender], setup.program(contender)
            if number < options.memory_rounds:
                own.peaks.append(peak_memory(program))
                note(f"memory of {contender}: {own.peaks[-1].num_bytes / MEBIBYTE:,.0f} MiB")
            else:
                own.seconds.append(seconds_of(program))
                if (steady := steady_state(setup.output(contender))) is not None:
                    own.steady.append(steady)
                note(f"time of {contender}: {own.seconds[-1]:.1f} s")
            predictions[contender] = read_predictions(
                setup.output(contender), num_images=options.images
            )
            record.put(runs={name: asdict(values) for name, values in figures.items()})
    return figures, predictions


def show_times(options: Options, figures: dict[str, Figures]) -> None:
    if not options.rounds:
        return
    print(
        f"\n{options.images:,} images, {options.network}, contract {options.contract}; {machine()}"
    )
    print(f"Whole processes, median of {options.rounds} interleaved rounds (and range).\n")
    ours = [contender for contender in (OURS, COLD) if contender in figures]
    print(
        "| program | seconds | images/s |"
        + "".join(f" times slower than {contender} |" for contender in ours)
    )
    print("|---|---|---|" + "---|" * len(ours))
    for contender, values in figures.items():
        speeds = [options.images / seconds for seconds in values.seconds]
        cells = [spread(values.seconds, ".1f"), spread(speeds, ".1f")]
        cells += [spread(ratios(values.seconds, figures[our].seconds), ".2f") for our in ours]
        print(f"| {contender} | " + " | ".join(cells) + " |")
    mine, best = (figures.get(contender, Figures()).steady for contender in (OURS, HAND_LOOP))
    if len(mine) == len(best) == options.rounds:
        print(
            f"\nSteady state, images/s: ours {spread(mine, '.1f')}, the hand-written loop "
            f"{spread(best, '.1f')}; share {spread(ratios(mine, best), '.2f')}."
        )


def show_memory(figures: dict[str, Figures]) -> None:
    megabytes = {
        contender: [peak.num_bytes / MEBIBYTE for peak in values.peaks]
        for contender, values in figures.items()
    }
    if not all(megabytes.values()):
        return
    print(f"\nPeak memory of the whole process tree ({MEMORY_KIND}).\n")
    print("| program | MiB | ours / theirs |\n|---|---|---|")
    for contender, peaks in megabytes.items():
        shares = ratios(megabytes[OURS], peaks) if OURS in megabytes else []
        print(f"| {contender} | {spread(peaks, ',.0f')} | {spread(shares, '.2f')} |")


def show_predictions(predictions: dict[str, Predictions], record: Record) -> None:
    if REFERENCE not in predictions:
        return
    reference = predictions[REFERENCE]
    num_labels = len({label for label, _ in reference.values()})
    compared = {
        contender: agreement(given, reference)
        for contender, given in predictions.items()
        if contender != REFERENCE
    }
    record.put(agreement={contender: asdict(values) for contender, values in compared.items()})
    print(
        f"\nPredictions against {REFERENCE} in float32, which gives {num_labels} different "
        "labels.\n"
    )
    print(
        "| program | same label | mean difference of its probability | largest |\n|---|---|---|---|"
    )
    for contender, values in compared.items():
        print(
            f"| {contender} | {values.same_label:.2%} | {values.mean_moved:.2%} | "
            f"{values.largest_moved:.2%} |"
        )


# --- against ourselves ----------------------------------------------------------------------------


def compare_sizes(options: Options, folder: Path, record: Record) -> None:
    """Measure our peak memory on folders of different sizes."""
    small = write_small_images(folder / "small", num_images=NUM_DIFFERENT_SMALL)
    weights = write_weights(small, folder / "small-package", options.contract, options.network)
    peaks: dict[int, Peak] = {}
    for size in options.flat:
        images = folder / f"small-{size}"
        fill_folder(images, small, size)
        setup = Setup(images, weights, options.network, folder, options.peers)
        if not peaks:
            setup.warm_up()
        peaks[size] = peak_memory(setup.program(OURS))
        read_predictions(setup.output(OURS), num_images=size)
        note(f"memory for {size:,} small images: {peaks[size].num_bytes / MEBIBYTE:,.0f} MiB")
        record.put(flat={number: asdict(peak) for number, peak in peaks.items()})
    print(f"\nOurs on 64 x 64 JPEGs, peak memory of the process tree ({MEMORY_KIND}).\n")
    print("| images | MiB | to the first |\n|---|---|---|")
    first = peaks[options.flat[0]].num_bytes
    for size, peak in peaks.items():
        print(f"| {size:,} | {peak.num_bytes / MEBIBYTE:,.0f} | {peak.num_bytes / first:.2f} |")


# --- text -----------------------------------------------------------------------------------------


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the range where there is one."""
    if not values:
        return ""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"


def machine() -> str:
    return (
        f"{os.cpu_count()} cores of {cpu_model() or platform.machine()}, "
        f"torch {version('torch')}, ray {version('ray')}"
    )


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the command line -----------------------------------------------------------------------------


def parse_options() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--photos", type=Path, help="Folder of photographs.")
    add("--images", type=int, default=5000, help="Images to classify: photographs, repeated.")
    add("--rounds", type=int, default=3, help="Rounds that are timed.")
    add("--memory-rounds", type=int, default=1, help="Rounds that measure memory.")
    add("--only", type=contenders, default=CONTENDERS, help=f"Some of {','.join(CONTENDERS)}.")
    add("--flat", type=sizes, default=(), help="Numbers of small images to compare memory at.")
    add("--contract", default=REFERENCE_CONTRACT, help="Of our package.")
    add("--network", default="resnet18", help="One of torchvision's classifiers.")
    add("--work", type=Path, help="Folder for images, outputs and caches, emptied at the end.")
    add("--peers", type=Path, help="Virtual environment of the peers; made when it is new.")
    add("--json", type=Path, help="File for every figure.")
    parser.set_defaults(peers=Path(tempfile.gettempdir()) / "eagleray-bench-peers")
    options = Options(**vars(parser.parse_args()))
    if options.photos is None and not options.flat:
        parser.error("name a folder with --photos, or sizes with --flat")
    return options


def contenders(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    known = (*CONTENDERS, *FIXED_PRECISIONS)
    if unknown := sorted(set(names) - set(known)):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names


def sizes(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    main()
