"""The workspace of all scenarios: a folder, the storages of outputs, and random generators."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eagleray.io import storage
from tests.chaos.material import Material, write_large, write_small
from tests.chaos.places import Place
from tests.chaos.s3_server import BUCKET, s3_server
from tests.chaos.scenario_result import ScenarioResult
from tests.support.processes import in_child, stderr_to

ROOT = Path(__file__).parents[2]
_IMPORTED_ON_THE_WAY = (
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "pandas", "pyarrow.dataset"),
    *("pyarrow.fs", "ray.data", "s3fs", "simplejpeg"),
)


@dataclass(frozen=True)
class Workspace:
    """The workspace of a run of the harness.

    Attributes:
        folder: Temporary folder on disk.
        places: Storages by name.
        seed: Seed of all random generators.
    """

    folder: Path
    places: dict[str, Place]
    seed: int

    def rng(self, *names: str) -> random.Random:
        """Return the random generator of a scenario, the same for the same seed."""
        return random.Random(f"{self.seed} {' '.join(names)}")

    @property
    def log(self) -> Path:
        """File of the standard error of processes under attack."""
        return self.folder / "log.txt"

    def small(self, place: Place, num_images: int = 60) -> Material:
        """Return small images in a place, written once."""
        return _small(self, place.name, num_images)

    def large(self, num_images: int) -> Material:
        """Return large images on disk, written once."""
        return _large(self, num_images)

    def __hash__(self) -> int:
        return hash(self.folder)


def preload() -> None:
    """Import the modules of a job, so that its forks need not; start no thread."""
    for name in _IMPORTED_ON_THE_WAY:
        importlib.import_module(name)
    _remember_service_models()


def _remember_service_models() -> None:
    """Have botocore parse the description of S3 once, and not in every fork."""
    loader: Any = importlib.import_module("botocore.loaders").JSONFileLoader
    session: Any = importlib.import_module("botocore.session").get_session()
    load = loader.load_file
    loaded: dict[str, Any] = {}

    def load_once(self: Any, path: str) -> Any:
        if path not in loaded:
            loaded[path] = load(self, path)
        return loaded[path]

    loader.load_file = load_once
    session.create_client("s3", region_name="us-east-1")


@cache
def _small(workspace: Workspace, name: str, num_images: int) -> Material:
    place = workspace.places[name]
    folder = workspace.folder / f"small-{name}-{num_images}"

    def write() -> Material:
        storage.use_s3(place.s3)
        return write_small(place, folder, num_images=num_images)

    material: Material = in_child(write)
    return material


@cache
def _large(workspace: Workspace, num_images: int) -> Material:
    folder = workspace.folder / f"large-{num_images}"
    folder.mkdir()
    material: Material = in_child(lambda: write_large(folder, num_images=num_images))
    return material


@contextlib.contextmanager
def open_workspace(seed: int, storages: Sequence[str]) -> Iterator[Workspace]:
    """Make a working folder, start an S3 server if one is wanted, and remove both at the end.

    If the block raises, the folder stays and its path is printed.
    """
    folder = Path(tempfile.mkdtemp(prefix="eagleray-chaos-"))
    os.environ["EAGLERAY_HOME"] = str(folder / "home")
    places = {"disk": Place("disk", str(folder / "disk"))}
    preload()
    try:
        with contextlib.ExitStack() as stack:
            if "S3" in storages:
                options = storage.S3Options(endpoint=stack.enter_context(s3_server()))
                places["S3"] = Place("S3", f"s3://{BUCKET}/chaos", options)
            wanted = {name: places[name] for name in storages}
            workspace = Workspace(folder, wanted, seed)
            with stderr_to(str(workspace.log)):
                yield workspace
    except BaseException:
        sys.stderr.write(f"the working folder is kept: {folder}\n")
        raise
    shutil.rmtree(folder)


@contextlib.contextmanager
def recording(scenario: str, place: Place) -> Iterator[ScenarioResult]:
    """Yield the result of a scenario, and measure its duration."""
    result = ScenarioResult(scenario, place.name)
    started = time.monotonic()
    yield result
    result.seconds = time.monotonic() - started
