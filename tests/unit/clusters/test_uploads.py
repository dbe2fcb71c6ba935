"""What travels to a cluster with a job, and what is refused with what to do instead."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagleray.clusters import uploads
from eagleray.clusters.remote_jobs import RemoteCommand
from eagleray.clusters.uploads import find_local_inputs, require_remote_outputs
from eagleray.core.errors import InputError
from eagleray.core.spec import Names
from eagleray.scheduling.packages import replace_words

KINDS = {
    **dict.fromkeys(("inputs", "spec", "data"), Names.INPUT),
    **dict.fromkeys(("model", "parent"), Names.MODEL),
    "output": Names.OUTPUT,
    "failed_only": Names.EARLIER_OUTPUT,
}


def command(**parameters: Any) -> RemoteCommand:
    return RemoteCommand("predict", (), parameters, KINDS)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos/deep").mkdir(parents=True)
    (tmp_path / "photos/a.jpg").write_bytes(b"a")
    (tmp_path / "photos/deep/b.jpg").write_bytes(b"bb")
    (tmp_path / "job.yaml").write_text("top_k: 3\n")
    monkeypatch.chdir(tmp_path)


def test_folders_and_files_travel_under_names_of_their_own() -> None:
    local = find_local_inputs(
        command(inputs=["photos", "s3://more/"], spec="job.yaml", model="photos-of-cats@best")
    )
    words = ["photos", "s3://more/", "--spec=job.yaml", "--model", "photos-of-cats@best"]
    assert replace_words(words, local.names) == [
        *("inputs/0/photos", "s3://more/", "--spec=inputs/1/job.yaml"),
        *("--model", "photos-of-cats@best"),
    ]
    name, content = local.archive()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {each: archive.read(each) for each in archive.namelist()} == {
            "inputs/0/photos/a.jpg": b"a",
            "inputs/0/photos/deep/b.jpg": b"bb",
            "inputs/1/job.yaml": b"top_k: 3\n",
        }
    assert name.startswith("_ray_pkg_")
    assert name.endswith(".zip")


def test_the_same_content_is_the_same_archive(tmp_path: Path) -> None:
    first = find_local_inputs(command(inputs=["photos"])).archive()
    (tmp_path / "photos/a.jpg").touch()
    assert find_local_inputs(command(inputs=["photos"])).archive() == first
    (tmp_path / "photos/a.jpg").write_bytes(b"c")
    assert find_local_inputs(command(inputs=["photos"])).archive()[0] != first[0]


def test_large_inputs_are_refused_with_the_command_that_copies_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "_MAX_BYTES", 2)
    with pytest.raises(InputError, match=r"aws s3 cp --recursive photos s3://BUCKET/photos/"):
        find_local_inputs(command(inputs=["photos"]))


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("photos/*.jpg", "is a pattern, which does not travel to a cluster; name the folder"),
        ("images.csv", "is a table on this disk"),
    ],
)
def test_what_does_not_travel_is_refused(tmp_path: Path, word: str, fault: str) -> None:
    (tmp_path / "images.csv").write_text("path\nphotos/a.jpg\n")
    with pytest.raises(InputError, match=fault):
        find_local_inputs(command(inputs=[word]))


def test_a_folder_of_files_without_end_is_listed_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []

    def files(_: Path) -> Iterator[tuple[str, Path]]:
        for number in itertools.count():
            listed.append(number)
            yield f"{number}.jpg", tmp_path / "photos/a.jpg"

    monkeypatch.setattr(uploads, "_files_below", files)
    with pytest.raises(InputError, match=r"the 20,000 files that travel"):
        find_local_inputs(command(inputs=["photos"]))
    assert len(listed) == 20_001


def test_the_package_of_a_parent_travels() -> None:
    assert find_local_inputs(command(parent="photos")).names == {"photos": "models/0/photos"}


@pytest.mark.parametrize("parameter", ["output", "failed_only"])
def test_outputs_on_this_disk_are_refused(parameter: str) -> None:
    with pytest.raises(InputError, match=r"s3://BUCKET/results/"):
        require_remote_outputs(command(**{parameter: "results"}))
    require_remote_outputs(command(**{parameter: "s3://bucket/results"}))
    require_remote_outputs(command(**{parameter: None}))
    with pytest.raises(InputError, match=r"s3://BUCKET/results/"):
        require_remote_outputs(command(**{parameter: "file:///results"}))
