"""A prediction job is opened: what is checked, listed and claimed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.batch.job import Job
from eagleray.batch.run import finish_job
from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError, UserError
from eagleray.io import storage
from eagleray.models.architectures import Architecture
from eagleray.models.package import write_package
from eagleray.sharded.history import list_jobs
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.progress import read_progress
from tests.support.job_folder import JobFolder, open_predict
from tests.support.models import settings_in, small_package
from tests.support.own_code import TinyNet


@pytest.fixture
def place(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path)


def test_a_job_is_opened_again_with_the_inputs_of_the_first_time(place: JobFolder) -> None:
    first = place.open()
    place.add_images("later.png")
    again = place.open()
    assert again.plan == first.plan
    assert again.plan.num_rows == 40
    assert again.committed is None
    assert [job.job_id for job in list_jobs(place.settings)] == [first.plan.job_id]


def test_an_output_that_holds_anything_else_is_refused(place: JobFolder) -> None:
    out = place.folder / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(OutputExistsError, match="never overwritten"):
        place.open()
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(OutputExistsError, match="is a file"):
        place.open(output=str(out / "mine.txt"))


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"output": "model/model.json/out"}, UserError, "out"),
        ({"model": "random:resnot18"}, UnknownNameError, "resnot18"),
        ({"inputs": ("nowhere",)}, UserError, "nowhere"),
        ({"inputs": ("model/model.json/x",)}, UserError, "no folder or file"),
        ({"since": ("nowhere",)}, UserError, "not the finished output"),
        ({"inputs": (), "failed_only": "nowhere"}, UserError, "not the finished output"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_anything_is_written(
    place: JobFolder,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    kind: type[UserError],
    sentence: str,
) -> None:
    monkeypatch.chdir(place.folder)
    with pytest.raises(kind, match=r"^[^\n]+$") as caught:
        place.open(**change)
    assert sentence in str(caught.value)
    assert read_progress(OutputLayout(str(place.folder / "out"))) is None
    assert list_jobs(place.settings) == []


def test_a_network_whose_module_is_not_allowed_is_refused_before_anything_is_written(
    place: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tests.support.own_code:TinyNet"
    own = Architecture(name=name, in_channels=1, num_outputs=3)
    package = small_package(architecture=own, module=TinyNet(3, 1).eval(), golden_images=())
    write_package(package, str(place.folder / "own"))
    with pytest.raises(InputError, match=r"own_code', which is not an extension here"):
        place.open(model=str(place.folder / "own"))
    assert not (place.folder / "out").exists()
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.own_code")
    assert place.open(model=str(place.folder / "own")).plan.num_rows == 40


def test_an_output_that_cannot_be_written_is_one_sentence(place: JobFolder) -> None:
    (place.folder / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written[^\n]+$"):
        place.open(output=str(place.folder / "file" / "below"))


def test_an_output_of_other_work_is_refused_and_kept(place: JobFolder) -> None:
    job = place.open()
    with pytest.raises(OutputExistsError, match="top_k is 5 there and 3 here"):
        place.open(top_k=3)
    assert place.open().plan == job.plan


def test_a_run_that_loses_the_race_for_the_plan_joins_the_winner(
    place: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner: list[Job] = []
    put_if_absent = storage.put_if_absent

    def later(location: str, content: bytes) -> bool:
        monkeypatch.undo()
        winner.append(place.open())
        return put_if_absent(location, content)

    monkeypatch.setattr(storage, "put_if_absent", later)
    loser = place.open()
    assert loser.plan == winner[0].plan
    assert loser.layout.abandoned_folders(loser.plan.manifest) == []
    assert any("joining it" in note for note in place.reporter.notes)


def test_a_run_whose_manifest_was_tidied_away_by_the_winner_joins_all_the_same(
    place: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_if_absent = storage.put_if_absent

    def later(location: str, content: bytes) -> bool:
        monkeypatch.undo()
        place.run(place.worked())
        return put_if_absent(location, content)

    monkeypatch.setattr(storage, "put_if_absent", later)
    loser = place.open()
    assert loser.committed is not None
    assert finish_job(loser).totals.num_rows == 40


def test_an_output_is_opened_from_any_home(place: JobFolder) -> None:
    summary = place.run(place.worked())
    elsewhere = settings_in(place.folder, "other-home")
    job = open_predict(place.request(), elsewhere, place.reporter)
    assert job.committed is not None
    assert job.committed.num_rows == summary.totals.num_rows
