"""Registries that packages outside Eagleray add to, through entry points."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eagleray.core import extensions
from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.extensions import ENTRY_POINT_GROUP, Extensions, load_object
from eagleray.core.settings import read_settings

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


def write_module(
    folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch, *, allowed: bool
) -> None:
    """Put a module on the path, and name it in the user's setting if it is allowed."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    if allowed:
        monkeypatch.setenv("EAGLERAY_EXTENSIONS", name)


@pytest.mark.usefixtures("fresh")
def test_modules_of_the_setting_are_extensions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"from {__name__} import SHAPES\nSHAPES.register('star', 'five')\n"
    write_module(tmp_path, "own_stars", source, monkeypatch, allowed=True)
    assert SHAPES.get("star") == "five"


@pytest.mark.usefixtures("fresh")
def test_an_object_has_an_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "own_sides", "sides = 7\n_hidden = 8\n", monkeypatch, allowed=True)
    assert load_object("own_sides:sides") == 7
    for name, nearest in (("side", " Nearest: sides."), ("_hidden", ""), ("sides.real", "")):
        with pytest.raises(UnknownNameError, match=f"own_sides is named '{name}'.{nearest}"):
            load_object(f"own_sides:{name}")


@pytest.mark.usefixtures("fresh")
def test_no_other_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "raise SystemExit('this must not run')"
    write_module(tmp_path, "hostile_sides", source, monkeypatch, allowed=False)
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "hostile")
    with pytest.raises(InputError, match=r"hostile_sides.* not imported; .*EAGLERAY_EXTENSIONS="):
        load_object("hostile_sides:sides")
    with pytest.raises(InputError, match="os:system"):
        load_object("os:system")
    assert "hostile_sides" not in sys.modules


@pytest.mark.usefixtures("fresh")
def test_a_module_of_the_setting_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "no_such_module")
    with pytest.raises(InputError, match=r"no_such_module of EAGLERAY_EXTENSIONS .* PYTHONPATH"):
        SHAPES.get("heptagon")


def test_the_setting_takes_names_of_modules_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "./own_sides.py")
    with pytest.raises(InputError, match=r"EAGLERAY_EXTENSIONS: './own_sides.py' is not the name"):
        read_settings()
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", " own.sides, stars ,")
    assert read_settings().extension_modules == ("own.sides", "stars")
