"""Registries that packages outside Eagleray add to, through entry points."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eagleray.core import extensions
from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.extensions import ENTRY_POINT_GROUP, Extensions

SHAPES: Extensions[str] = Extensions("shape", hint="Draw one.")
SHAPES.register("circle", "round")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which entry points were imported."""
    monkeypatch.setattr(extensions, "_loaded", set())
    monkeypatch.setattr(extensions, "_failures", [])


def install(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution with one module and one entry point on the path."""
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {name}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_registered_value_is_found_by_its_name() -> None:
    assert SHAPES.get("circle") == "round"
    assert "circle" in SHAPES.names()


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"No shape is named 'circel'. Nearest: circle."):
        SHAPES.get("circel")


def test_two_values_cannot_have_one_name() -> None:
    SHAPES.register("circle", SHAPES.get("circle"))  # the same value again is no other
    with pytest.raises(ValueError, match="another shape named 'circle'"):
        SHAPES.register("circle", "square")


@pytest.mark.usefixtures("fresh")
def test_entry_points_are_imported_when_a_name_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        tmp_path,
        "hexagons",
        f"from {__name__} import SHAPES\nSHAPES.register('hexagon', 'six')\n",
        monkeypatch,
    )
    SHAPES.get("circle")
    assert "hexagons" not in sys.modules
    assert SHAPES.get("hexagon") == "six"


@pytest.mark.usefixtures("fresh")
def test_an_extension_that_cannot_be_imported_is_named_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "broken", "import no_such_module\n", monkeypatch)
    for _ in range(2):
        with pytest.raises(InputError, match=r"'broken' of the package broken .*no_such_module"):
            SHAPES.get("pentagon")
    assert SHAPES.get("circle") == "round"
