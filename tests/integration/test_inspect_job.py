"""The inspection on a real Ray: copies across parts, broken and hostile files, S3, the command."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3fs
import typer
from PIL import Image, ImageEnhance
from typer.testing import CliRunner

from eagleray.core.errors import ExitCode, Reason
from eagleray.core.ray_session import Cluster
from eagleray.data import inspection
from eagleray.data.inspection import Inspection, inspect_images
from eagleray.data.labelled import LabelledImages, read_labelled
from eagleray.data.split_file import read_split
from eagleray.imaging import named_contract
from eagleray.jobs import inspect
from tests.support.images import encode, photo
from tests.support.killers import killer_environment, killer_jpeg

FAST = named_contract("fast")
NUM_GOOD = 60


def run(*words: str, expect: int = ExitCode.OK) -> str:
    """Run the command in this process, on the Ray that is there."""
    app = typer.Typer()
    app.command()(inspect.main)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == expect, result.output
    return result.output if expect else result.stdout


def found(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*words, "--json"))
    return answer


def picture(seed: int) -> Image.Image:
    """Return a picture of its own: patches of colour, larger than a hash's cells."""
    small = Image.fromarray(photo(12, 9, seed=seed, noise=80.0))
    return small.resize((120, 90), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of pictures; copies, exact, re-encoded and brightened; two broken files."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("day", "night"):
        (folder / name).mkdir()
    for index in range(NUM_GOOD):
        name = ("day", "night")[index % 2]
        (folder / name / f"{index:02d}.jpg").write_bytes(jpeg(picture(index)))
        if index < 20:
            (folder / name / f"{index:02d}-again.jpg").write_bytes(jpeg(picture(index)))
        elif index < 40:
            copy = ImageEnhance.Brightness(picture(index)).enhance(1.15)
            (folder / name / f"{index:02d}-near.jpg").write_bytes(jpeg(copy, 70))
    (folder / "day" / "text.jpg").write_text("no image")
    (folder / "night" / "short.jpg").write_bytes(jpeg(picture(0))[:900])
    return folder


def test_duplicates_across_splits_are_found_and_kept_together(
    cluster: Cluster, tmp_path: Path, data: Path
) -> None:
    page, kept = tmp_path / "report.html", tmp_path / "split.parquet"
    told = found(str(data), "--output", str(page))
    assert told["images"] == NUM_GOOD + 42
    assert told["classes"]["day"]["train"] > 30
    assert told["formats"] == {"jpeg": NUM_GOOD + 40}
    reasons = {Path(fault["uri"]).name: fault["reason"] for fault in told["unreadable"]}
    assert reasons == {"text.jpg": "not_an_image", "short.jpg": "truncated"}
    assert len(told["exact_duplicates"]) == 20
    for one, other in told["near_duplicates_across_splits"]:
        assert Path(one["uri"]).name[:2] == Path(other["uri"]).name[:2]
    leaks = [
        told["leaked"][part][kind]
        for part in ("validation", "test")
        for kind in ("exact_duplicates", "near_duplicates")
    ]
    assert sum(leaks) >= 5
    assert any("near-duplicates in other splits" in warning for warning in told["warnings"])
    assert "Near-duplicates across splits" in page.read_text()

    words = ["--output", str(page), "--keep-duplicates-together", "--split-file", str(kept)]
    told = found(str(data), *words)
    assert sum(sum(kinds.values()) for kinds in told["leaked"].values()) == 0
    assert told["near_duplicates_across_splits"] == []
    split = read_split(str(kept), read_labelled(str(data)))
    assert split.digest == told["split_digest"]
    assert {name: len(part) for name, part in split.by_name.items()} == told["splits"]
    assert "a split is kept" in run(str(data), *words, expect=ExitCode.USER)


def test_what_is_known_is_not_read_again_until_an_image_changes(
    cluster: Cluster, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = read_labelled(str(data))
    heard: list[tuple[int, int]] = []

    def look(rows: LabelledImages) -> Inspection:
        heard.clear()
        return inspect_images(
            rows,
            FAST,
            cluster=cluster,
            cache_folder=tmp_path,
            progress=lambda count, failed: heard.append((count, failed)),
        )

    first = look(images)
    assert [sum(column) for column in zip(*heard, strict=True)] == [len(images), 2]

    def must_not_look(*_: object) -> Iterator[Any]:
        raise AssertionError("looked again")

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "_inspect_on", must_not_look)
        relabelled = LabelledImages(images.uris, ("x",) * len(images), images.versions)
        assert look(relabelled).table.equals(first.table)
        changed = LabelledImages(images.uris, images.labels, ("new", *images.versions[1:]))
        with pytest.raises(AssertionError, match="looked again"):
            look(changed)
        unknown = LabelledImages(images.uris, images.labels, ("", *images.versions[1:]))
        with pytest.raises(AssertionError, match="looked again"):
            look(unknown)


def test_an_image_that_is_not_there_is_not_remembered(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(photo()))
    images = LabelledImages(
        (str(tmp_path / "a.png"), str(tmp_path / "b.png")), ("x", "y"), ("1", "2")
    )
    looks = []
    for _ in range(2):
        seen = inspect_images(images, FAST, cluster=cluster, cache_folder=tmp_path / "cache")
        looks.append([fault.reason for fault in seen.faults])
        (tmp_path / "b.png").write_bytes(encode(photo(seed=1)))
    assert looks == [[Reason.MISSING], []]


def test_hostile_images_are_named_and_the_others_read(cluster: Cluster, tmp_path: Path) -> None:
    import ray

    for index in range(6):
        (tmp_path / f"{index}.jpg").write_bytes(jpeg(picture(index)))
    for kind in ("SEGV", "HANG"):
        (tmp_path / f"{kind}.jpg").write_bytes(killer_jpeg(kind))
    names = ["0.jpg", "SEGV.jpg", "1.jpg", "2.jpg", "HANG.jpg", "3.jpg", "4.jpg", "5.jpg"]
    uris = tuple(str(tmp_path / name) for name in names)
    images = LabelledImages(uris, ("x",) * len(uris), ("",) * len(uris))
    remote = ray.remote

    def under_the_hook(**options: Any) -> Any:
        return remote(**options, runtime_env={"env_vars": killer_environment()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "remote", under_the_hook)
        seen = inspect_images(images, FAST, cluster=cluster, seconds_per_image=1.0)
    faults = {Path(fault.uri).name: fault.reason for fault in seen.faults}
    assert faults == {"SEGV.jpg": Reason.DECODER_CRASH, "HANG.jpg": Reason.TIMEOUT}


def test_data_may_live_on_s3(cluster: Cluster, s3: str, tmp_path: Path) -> None:
    filesystem = s3fs.S3FileSystem()
    rows = ["path,kind,camera"]
    for index in range(12):
        filesystem.pipe_file(f"{s3}/inspect/{index}.jpg", jpeg(picture(index)))
        rows.append(f"{index}.jpg,{'ab'[index % 2]},{index // 3}")
    rows.append("gone.jpg,a,9")
    filesystem.pipe_file(f"{s3}/inspect/t.csv", "\n".join(rows).encode())
    words = ["--label-column", "kind", "--group-column", "camera", "--s3-region", "us-east-1"]
    output = [f"--output={s3}/inspect/r.html", f"--split-file={s3}/inspect/s.parquet"]
    told = found(f"{s3}/inspect/t.csv", *words, *output)
    assert [fault["reason"] for fault in told["unreadable"]] == ["missing"]
    assert filesystem.cat(f"{s3}/inspect/r.html").startswith(b"<!doctype html>")
    images = read_labelled(f"{s3}/inspect/t.csv", label_column="kind")
    assert [bool(version) for version in images.versions] == [True] * 12 + [False]
    split = read_split(f"{s3}/inspect/s.parquet", images)
    cameras = [set(part.attributes["camera"]) for part in split.by_name.values()]
    assert sum(map(len, cameras)) == len(set.union(*cameras)) == 5
    filesystem.pipe_file(f"{s3}/inspect/3.jpg", jpeg(picture(99)))
    assert read_labelled(f"{s3}/inspect/t.csv", label_column="kind").digest != images.digest


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--output", "r.txt"], "must end in .html"),
        (["--output", "r.html", "--split-file", "s.csv"], "must end in .parquet"),
        (["--output", "r.html", "--test-fraction", "1"], "--test-fraction must be less than 1"),
        (["--output", "r.html", "--group-column", "camera"], "No column of"),
        (["--output", "r.html", "--task", "binary", "--seed", "1", "--contract", "x"], "contract"),
        (["--output", "r.html", "--task", "regression"], "is not a number"),
        (
            ["--output", "r.html", "--validation-fraction", "0.5", "--test-fraction", "0.5"],
            "leave nothing to train on",
        ),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(
    data: Path, words: list[str], sentence: str
) -> None:
    told = run(str(data), *words, expect=ExitCode.USER)
    assert sentence in told
    assert "Traceback" not in told


def test_a_test_set_of_its_own_is_looked_at_too(
    cluster: Cluster, tmp_path: Path, data: Path
) -> None:
    for name in ("day", "night"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "new.jpg").write_bytes(jpeg(picture(77 + len(name))))
    (tmp_path / "own" / "day" / "00.jpg").write_bytes((data / "day" / "00.jpg").read_bytes())
    words = ["--test-data", str(tmp_path / "own"), "--output", str(tmp_path / "r.html")]
    told = found(str(data), *words)
    assert told["splits"]["test"] == 3
    assert told["leaked"]["test"] == {"exact_duplicates": 1, "near_duplicates": 0}
