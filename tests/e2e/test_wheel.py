"""The wheel and the source distribution: what is in them, and that nothing else is needed."""

from __future__ import annotations

import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

from tests.support.installed import Distributions, Installed

ROOT = Path(__file__).parents[2]
WHERE = """
import importlib, json, pkgutil
import eagleray
names = [module.name for module in pkgutil.walk_packages(eagleray.__path__, "eagleray.")]
programs = [importlib.import_module(n) for n in names if n.startswith("eagleray.jobs.")]
print(json.dumps([names, [module.__file__ for module in (eagleray, *programs)]]))
"""


def test_a_wheel_holds_the_package_and_nothing_else(distributions: Distributions) -> None:
    names = zipfile.ZipFile(distributions.wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"eagleray"}
    assert not [name for name in names if "test" in name.lower()]
    files = {str(path.relative_to(ROOT / "lib")) for path in (ROOT / "lib").rglob("*")}
    for folder in ("jobs", "serve"):  # links in the checkout, which no walk follows
        files |= {f"eagleray/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*")}
    files = {name for name in files if (ROOT / "lib" / name).is_file() and ".pyc" not in name}
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {
        "eagleray/py.typed",
        "eagleray/serve/gateway/haproxy.cfg",
        "eagleray/jobs/demo.py",
    } <= files


def test_a_source_distribution_builds_the_same_wheel(distributions: Distributions) -> None:
    assert distributions.wheel.read_bytes() == distributions.direct.read_bytes()
    with tarfile.open(distributions.source) as archive:
        assert not [member.name for member in archive if member.issym()]


def test_an_installed_package_is_whole_and_imports_from_itself_alone(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "jobs").mkdir()  # somebody's own folders, which are nobody's modules
    (tmp_path / "serve.py").write_text("raise SystemExit('not this one')")
    said = subprocess.run(
        [installed.python, "-c", WHERE],
        cwd=tmp_path,
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    names, files = json.loads(said.stdout)
    helped = subprocess.run(
        [installed.python, "-m", "eagleray", "--help"],
        cwd=tmp_path / "jobs",
        env=installed.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "predict" in helped.stdout
    expected = {"jobs.tune", "serve.http.app", "serving.versions.model_pool"}
    assert {f"eagleray.{module}" for module in expected} <= set(names)
    assert all(Path(file).is_relative_to(installed.folder) for file in files)
    package = Path(files[0]).parent
    assert (package / "serve/gateway/haproxy.cfg").is_file()
    assert not (package.parent / "jobs").exists()
    assert not (package.parent / "serve").exists()
