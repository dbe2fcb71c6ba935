"""`python -m eagleray.jobs.predict` in a session of its own, and its workers."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from tests.chaos.command import Command
from tests.chaos.material import Material
from tests.chaos.places import Place
from tests.support.processes import titled

WORKERS = ("ray::MapWorker",)
OF_RAY = ("ray::",)


class Predict(Command):
    """A running batch job.

    Args:
        material: What it works on.
        place: Of the output.
        output: Location.
        options: More words of the command line.
        environment: More variables.
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
        words += ["--precision", "float32", "--compile", "never"]
        if place.s3.endpoint is not None:
            words += ["--s3-endpoint", place.s3.endpoint]
        super().__init__(words, environment)

    def workers(self) -> list[psutil.Process]:
        """Actors that work on shards."""
        return titled(self.family(), *WORKERS)

    def processes_of_ray(self) -> list[psutil.Process]:
        """Every worker process of its Ray, whatever it does."""
        return titled(self.family(), *OF_RAY)
