"""Sources of packages outside Eagleray: registered once, read by batch and training alike."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from eagleray.core.errors import InputError
from eagleray.core.extensions import Extensions
from eagleray.data.labelled import read_labelled
from eagleray.io.storage import PathPolicy
from eagleray.sources import (
    InputSpec,
    OpenedSource,
    SkippedFiles,
    Source,
    open_inputs,
    register_source,
    source,
)
from eagleray.sources.listing import with_user_columns
from eagleray.sources.tables import list_locations


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a source of `catalog://NAME`, whose images lie in a folder of that name."""

    def open_catalog(location: str, _spec: InputSpec, _skipped: SkippedFiles) -> OpenedSource:
        folder = tmp_path / location.removeprefix("catalog://")
        files = sorted(map(str, folder.glob("*.png")))
        user = pa.table({"label": [Path(file).name[0] for file in files]})
        rows = with_user_columns(list_locations(files), user)
        return OpenedSource(location, user.schema, iter([rows]), f"{location} is empty.")

    registry: Extensions[Source] = Extensions("source")
    for known in reversed(source.registered_sources()):
        registry.register(known.name, known)
    monkeypatch.setattr(source, "_SOURCES", registry)
    register_source(
        Source("catalog", lambda location: location.startswith("catalog://"), open_catalog)
    )


def test_it_is_read_beside_other_sources(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    files = [tmp_path / "pets" / name for name in ("a1.png", "b2.png", "c3.jpg")]
    for file in files:
        file.touch()
    listing = open_inputs(InputSpec(("catalog://pets", str(files[2]))))
    rows = pa.concat_tables(listing.tables)
    assert rows["uri"].to_pylist() == [
        f"{tmp_path}/pets/{n}" for n in ("a1.png", "b2.png", "c3.jpg")
    ]
    assert rows["label"].to_pylist() == ["a", "b", None]


def test_labelled_data_are_read_from_it(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/a1.png").touch()
    images = read_labelled("catalog://pets")
    assert (images.uris, images.labels) == ((f"{tmp_path}/pets/a1.png",), ("a",))


def test_what_is_wrong_is_said_as_of_other_sources(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="catalog://none is empty"):
        list(open_inputs(InputSpec(("catalog://none",))).tables)
    with pytest.raises(InputError, match="which is outside the locations that this job may read"):
        open_inputs(InputSpec(("catalog://none",), policy=PathPolicy((str(tmp_path),))))
