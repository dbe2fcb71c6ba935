"""Ten thousand inputs, three in a hundred of them broken in every way that has a reason code.

Among them are images at which the decoder dies, hangs, or takes all memory: a hook that every
worker process loads at its start does that to images with a mark.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from eagleray.batch.earlier import read_results
from eagleray.data.digits import BROKEN_FILES, write_digits
from eagleray.inference.predictor import Predictor
from eagleray.models.package import read_package
from tests.chaos.material import Material, write_model
from tests.chaos.places import Place
from tests.chaos.predict import Predict
from tests.chaos.readers import polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.workspace import Workspace, recording
from tests.support.images import bombs, encode, photo
from tests.support.killers import killer_environment, killer_jpeg
from tests.support.processes import in_child

SHARE_BROKEN = 0.03
MAX_BYTES, MAX_PIXELS = 100_000, 1_000_000
SECONDS_PER_IMAGE = 5
MARKED = {
    "SEGV": ("decoder_crash", 3),
    "ABORT": ("decoder_crash", 2),
    "EXIT": ("decoder_crash", 2),
    "BAD_ALLOC": ("out_of_memory", 2),
    "SIGKILL": ("out_of_memory", 2),
    "MEMORY": ("out_of_memory", 1),
    "HANG": ("timeout", 2),
    "GIL": ("timeout", 1),
    "CHATTER": ("ok", 2),
}
"""Expected reason and number of the marked images."""

_TOLERANCE = 1e-5  # of a probability, between different batches
_GOOD_NAMES = ("plain.png", "é ü 漢字.png", "100%25 and %20.png", "two\nlines.png", " spaces .png")


def predict_broken_inputs(
    workspace: Workspace, place: Place, *, num_inputs: int = 10_000
) -> ScenarioResult:
    """Run one job on broken inputs, and compare every row with the expected one.

    Args:
        workspace: Workspace of the run.
        place: Storage of the inputs and the output, on disk.
        num_inputs: Number of inputs.
    """
    material: Material = in_child(lambda: write_inputs(workspace, num_inputs))
    output = place.output("broken-inputs", 1)
    with recording("broken-inputs", place) as result:
        with polling(result, place, lambda _: output, num_inputs) as readers:
            readers.watch(1)
            predict = Predict(
                material,
                place,
                output,
                options=["--image-timeout", str(SECONDS_PER_IMAGE)],
                environment=killer_environment(),
            )
            finished = predict.wait(1800)
            readers.wait_for_polls()
        if finished.code:
            result.faults.append(f"the job ended with exit code {finished.code}")
            return result
        _check_sums(result, finished.summary, num_inputs)
        findings = workspace.folder / "broken-inputs.json"
        in_child(lambda: check_rows(output, material, findings), seconds=900)
        _add(result, json.loads(findings.read_text()))
    return result


def _check_sums(result: ScenarioResult, summary: dict[str, Any], num_inputs: int) -> None:
    if not num_inputs == summary["images"] == summary["ok"] + summary["failed"]:
        result.faults.append(f"inputs are not ok + failed: {summary}")
    if summary["failed"] != sum(summary["reasons"].values()):
        result.faults.append(f"failures are not the sum of their reasons: {summary}")
    result.counts.update({f"failed: {reason}": n for reason, n in summary["reasons"].items()})
    result.counts["ok"] = summary["ok"]


def _add(result: ScenarioResult, found: dict[str, Any]) -> None:
    result.outputs += 1
    for name in ("rows", "lost", "doubled", "different"):
        setattr(result, name, found[name])
    result.faults += found["faults"]


# --- inputs -----------------------------------------------------------------------------------


def write_inputs(workspace: Workspace, num_inputs: int) -> Material:
    """Write good and bad images, and the table that lists them with their expected reasons."""
    folder = workspace.folder / "broken"
    write_digits(folder)
    good = sorted((folder / "images").glob("digit-*.png"))
    num_broken = round(SHARE_BROKEN * num_inputs)
    broken = list(itertools.islice(_broken(folder), num_broken))
    rows = list(broken)
    for number in range(num_inputs - num_broken):
        link = folder / "good" / f"{number:05d} {_GOOD_NAMES[number % len(_GOOD_NAMES)]}"
        link.parent.mkdir(exist_ok=True)
        link.hardlink_to(good[number % len(good)])
        rows.append((str(link), "ok", ""))
    workspace.rng("broken-inputs").shuffle(rows)
    table = folder / "inputs.parquet"
    columns = zip(*rows, strict=True)
    names = ("uri", "expected", "how")
    arrays = [pa.array(column, pa.string()) for column in columns]
    pa.parquet.write_table(pa.table(arrays, names=names), table)
    model = write_model(folder / "model", max_bytes=MAX_BYTES, max_pixels=MAX_PIXELS)
    return Material(str(table), num_inputs, model)


def _broken(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield locations, reasons and kinds of bad inputs, without end; each kind comes often."""
    (folder / "bad").mkdir()
    for kind, (reason, count) in MARKED.items():
        for number in range(count):
            file = folder / "bad" / f"marked-{kind}-{number}.jpg"
            file.write_bytes(killer_jpeg(kind, photo(40, 40, seed=number)))
            yield str(file), reason, f"marked {kind}"
    for name, reason in BROKEN_FILES.items():
        yield str(folder / "images" / name), reason, name
    kinds = {**_files(), **_places()}
    for number in itertools.count():
        for kind, (reason, make) in kinds.items():
            place = folder / "bad" / f"{kind}-{number}"
            yield make(place), reason, kind


_Maker = Callable[[Path], str]


def _files() -> dict[str, tuple[str, _Maker]]:
    """Files of bad bytes, by kind."""
    png = encode(photo(60, 60))
    jpeg = encode(photo(60, 60), "jpeg")
    contents = {
        "empty": ("truncated", b""),
        "half a png": ("truncated", png[: len(png) // 2]),
        "half a jpeg": ("truncated", jpeg[: len(jpeg) // 2]),
        "text": ("not_an_image", b"no image at all"),
        "a page": ("not_an_image", b"<!doctype html><title>404</title>"),
        "a document": ("unsupported_format", b"%PDF-1.7\n"),
        "many bytes": ("too_many_bytes", png + bytes(MAX_BYTES)),
        "many pixels": ("too_many_pixels", encode(np.zeros((1001, 1000), np.uint8))),
    }
    contents |= {f"bomb {bomb.name}": ("too_many_pixels", bomb.data) for bomb in bombs()}

    def writing(content: bytes) -> _Maker:
        def write(place: Path) -> str:
            place.write_bytes(content)
            return str(place)

        return write

    return {kind: (reason, writing(content)) for kind, (reason, content) in contents.items()}


def _places() -> dict[str, tuple[str, _Maker]]:
    """Locations where no file can be read, by kind."""

    def linked(target: str) -> _Maker:
        def link(place: Path) -> str:
            place.symlink_to(target.format(name=place.name))
            return str(place)

        return link

    def piped(place: Path) -> str:
        os.mkfifo(place)
        return str(place)

    def foldered(place: Path) -> str:
        place.mkdir()
        return str(place)

    return {
        "nothing": ("missing", str),
        "link to nothing": ("missing", linked("a file that was deleted")),
        "folder": ("missing", foldered),
        "below a file": ("missing", lambda place: f"{place.parents[1]}/inputs.parquet/x.png"),
        "no location": ("missing", lambda _: ""),
        "pipe": ("unreadable", piped),
        "link to itself": ("unreadable", linked("{name}")),
        "name too long": ("unreadable", lambda place: str(place.with_name("x" * 300))),
        "address": ("unreadable", lambda place: f"http://127.0.0.1:9/{place.name}.jpg"),
        "unknown scheme": ("unreadable", lambda place: f"nosuch://bucket/{place.name}.jpg"),
    }


# --- results ----------------------------------------------------------------------------------


def check_rows(output: str, material: Material, findings: Path) -> None:
    """Compare every row with the expected one, and write the findings to a file."""
    rows = pa.concat_tables(read_results(output)).to_pylist()
    times = Counter(row["row"] for row in rows)
    wrong = [row for row in rows if (row["reason"] or "ok") != row["expected"]]
    expected = _expected_predictions(
        material.model, [row["uri"] for row in rows if row["expected"] == "ok"]
    )
    differing = [
        row for row in rows if row["status"] == "ok" and not _agrees(row, expected[row["uri"]])
    ]
    faults = [
        f"{row['how']}: {row['reason']} instead of {row['expected']} ({row['message']})"
        for row in wrong
    ]
    found = {
        "rows": len(rows),
        "lost": len(set(range(material.num_images)) - times.keys()),
        "doubled": sum(times.values()) - len(times),
        "different": len(wrong) + len(differing),
        "faults": faults[:50],
    }
    findings.write_text(json.dumps(found))


def _expected_predictions(model: str, uris: list[str]) -> dict[str, tuple[str, float]]:
    """Predict good images with a predictor alone; hard links of one file only once."""
    predictor = Predictor(read_package(model), precision="float32", engine="eager")
    first_of = {uri: os.stat(uri).st_ino for uri in uris}  # noqa: PTH116 - ten thousand of them
    files = {inode: Path(uri) for uri, inode in first_of.items()}
    outcomes = predictor.predict([file.read_bytes() for file in files.values()])
    by_inode = {
        inode: (outcome.prediction.label or "", outcome.prediction.score or 0.0)
        for inode, outcome in zip(files, outcomes, strict=True)
        if outcome.prediction is not None
    }
    return {uri: by_inode[inode] for uri, inode in first_of.items()}


def _agrees(row: dict[str, Any], expected: tuple[str, float]) -> bool:
    return bool(row["label"] == expected[0] and abs(row["score"] - expected[1]) < _TOLERANCE)
