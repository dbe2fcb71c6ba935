"""`python -m eagleray.jobs.predict` in a session of its own, and its workers."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from tests.chaos.command import Command
from tests.chaos.material import Material
from tests.chaos.places import Place
from tests.support.processes import titled

WORKERS = ("ray::MapWorker",)
RAY_PROCESSES = ("ray::",)


class Predict(Command):
    """A running batch job.

    Args:
        material: Inputs of the job.
        place: Storage of the output.
        output: Location of the output.
        options: Additional words of the command line.
        environment: Additional variables.
    """

    def __init__(
        self,
        material: Material,
        place: Place,
        output: str,
        *,
        options: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        words = ["eagleray.jobs.predict", material.images]
        words += ["--model", material.model, "--output", output, "--json", *options]
        words += ["--precision", "float32", "--engine", "eager"]
        if place.s3.endpoint is not None:
            words += ["--s3-endpoint", place.s3.endpoint]
        super().__init__(words, environment)

    def workers(self) -> list[psutil.Process]:
        """Return the actors that work on shards."""
        return titled(self.family(), *WORKERS)

    def ray_processes(self) -> list[psutil.Process]:
        """Return all worker processes of its Ray."""
        return titled(self.family(), *RAY_PROCESSES)
