"""The images that an export is compared on: golden ones, and a test split or the user's."""

from __future__ import annotations

from pathlib import Path

from eagleray.data.labelled import LabelledImages
from eagleray.data.split import Split
from eagleray.data.split_file import write_split
from eagleray.exports.images import collect_images, evaluation_uris
from eagleray.exports.spec import ExportSpec
from tests.support.models import LINEAGE, golden_png, registry_in, small_package


def write_images(folder: Path, count: int) -> LabelledImages:
    folder.mkdir()
    for seed in range(count):
        (folder / f"{seed:02d}.png").write_bytes(golden_png(seed))
    uris = tuple(str(folder / f"{seed:02d}.png") for seed in range(count))
    return LabelledImages(uris, ("zero",) * count, ("",) * count)


def spec_of(**fields: object) -> ExportSpec:
    return ExportSpec.make({"model": "digits/1", "output": "out", **fields})


def test_the_test_split_of_the_version_or_its_parent_is_found(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 9)
    registry = registry_in(tmp_path)
    package = small_package()
    version = registry.register(package)
    assert evaluation_uris(spec_of(), registry, version) == (
        [],
        "There is no test split to read; only golden images are compared.",
    )
    split = Split(images.take(range(3)), images.take(range(3, 5)), images.take(range(5, 9)))
    write_split(split, f"{version.run_folder}/split.parquet")
    lineage = LINEAGE.model_copy(update={"parent": package.digest})
    child = registry.register(small_package(lineage=lineage))
    for one in (version, child):
        uris, source = evaluation_uris(spec_of(), registry, one)
        assert uris == list(images.uris[5:])
        assert source == "Evaluation images are from the test split of digits/1."


def test_images_are_evenly_spread_and_those_that_fail_are_counted(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 9)
    Path(images.uris[4]).write_bytes(b"no image")
    registry = registry_in(tmp_path)
    spec = spec_of(data=str(tmp_path / "images"), max_images=3)
    uris, source = evaluation_uris(spec, registry, None)
    package = small_package()
    found = collect_images(package, uris, source, spec.max_images)
    assert found.num_golden == 3
    assert found.uris == (*(one.file for one in package.golden.images), uris[0], uris[8])
    assert found.pixels.shape == (5, 32, 32, 1)
    assert found.notes[1] == "1 of 3 evaluation images could not be read."
