"""Run the whole pipeline on real images: train, register, predict, serve.

    python -m eagleray.jobs.demo
    eagleray demo --folder /tmp/digits

Writes the 1,797 handwritten digits of scikit-learn as PNG files, and a dozen broken files beside
them; trains LeNet-5 on two workers; registers it; classifies the folder with it; starts the service
and compares its prediction of one digit with that of the batch job.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

from eagleray.batch.job import open_job
from eagleray.batch.run import run_job
from eagleray.batch.spec import PredictSpec
from eagleray.cli.common import JsonOption, VerboseOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import job_session, job_settings, run_command
from eagleray.client import Client
from eagleray.core.errors import JobFailedError, OutputExistsError
from eagleray.core.settings import Settings
from eagleray.core.system import free_port
from eagleray.core.types import TOLERANCE
from eagleray.data.digits import BROKEN_FILES, write_digits
from eagleray.jobs import predict, train
from eagleray.registry.references import load_model
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.training.job import run_job as run_train_job
from eagleray.training.prepare import open_job as open_train_job
from eagleray.training.spec import TrainSpec

WORKERS = 2
EPOCHS = 30
BATCH_SIZE = 32
RANDOM_TRANSLATION = 0.0625
SERVED_IMAGE = "digit-0007-is-7.png"

SAME_SCORE = max(TOLERANCE.values())
"""Largest difference of a score between batch and service, whose passes have other sizes."""


def main(
    folder: Annotated[
        Path | None, typer.Option(help="Where to work; default: demo/ in the home folder.")
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """See it work: digits, good and broken, through training, registry, batch and service."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings()
        place = _free_folder(folder, settings)
        labels = write_digits(place)
        console.note(f"1,797 digits and {len(BROKEN_FILES)} broken files are in {place}/images")
        with job_session(settings, verbose=verbose) as session:
            workers = min(WORKERS, session.num_gpus or session.num_cpus)
            console.note(
                f"$ eagleray train {labels} --name digits --architecture lenet5 "
                f"--workers {workers} --epochs {EPOCHS} --batch-size {BATCH_SIZE} "
                f"--random-translation {RANDOM_TRANSLATION}"
            )
            spec = TrainSpec(
                data=str(labels),
                name="digits",
                architecture="lenet5",
                workers=workers,
                epochs=EPOCHS,
                batch_size=BATCH_SIZE,
                random_translation=RANDOM_TRANSLATION,
            )
            job = open_train_job(spec, settings)
            trained = run_train_job(job, session, console)
            if not json_output:
                train.show(trained, console)
            request = PredictSpec(
                inputs=(str(place / "images"),),
                model=trained.version.reference,
                output=str(place / "results"),
            )
            console.note(
                f"$ eagleray predict {place}/images --model {request.model} "
                f"--output {request.output}"
            )
            model = load_model(request.model, settings)
            batch_job = open_job(request, model, settings, console)
            predicted = run_job(batch_job, lambda: session, console)
        if not json_output:
            predict.show(predicted, console)
        served = query_service(trained.version, place, settings, console)
        if json_output:
            batch = predicted.as_json()
            console.emit({"train": trained.as_json(), "predict": batch, "serve": served})


def query_service(
    version: ModelVersion, place: Path, settings: Settings, console: Console
) -> dict[str, object]:
    """Put a version into production, start the service, and compare one answer with its row.

    Raises:
        JobFailedError: The service does not start, or answers otherwise than the batch job did.
    """
    name = version.name
    console.note(f"$ eagleray models alias {name} production {version.version}")
    Registry(settings).set_alias(name, "production", version.version, reason="the demo")
    image = place / "images" / SERVED_IMAGE
    with running_service(name, console) as url:
        console.note(f"$ curl {url}/v1/models/{name}/predict --data-binary @{image}")
        with Client(url) as client:
            answer = client.predict_response(name, [image])
    (result,) = answer.results
    rows = pq.read_table(place / "results", columns=["uri", "label", "score"])
    row = rows.filter(pc.match_substring(rows["uri"], SERVED_IMAGE)).to_pylist()[0]
    same = result.label == row["label"] and abs((result.score or 0) - row["score"]) <= SAME_SCORE
    if not console.for_scripts:
        console.say(
            f"{SERVED_IMAGE}: the service says {result.label!r} ({result.score:.4f}) by version "
            f"{answer.version}, the batch row {row['label']!r} ({row['score']:.4f})."
        )
    if not same:
        raise JobFailedError("The service answers otherwise than the batch job.")
    return {"label": result.label, "score": result.score, "version": answer.version, "row": row}


@contextlib.contextmanager
def running_service(model: str, console: Console) -> Iterator[str]:
    """Run the service in a process of its own, and give its address.

    Raises:
        JobFailedError: It does not start.
    """
    port = free_port()
    console.note(f"$ eagleray serve {model} --port {port}")
    command = [sys.executable, "-P", "-m", "eagleray.serve.run", model, "--port", str(port)]
    with subprocess.Popen(
        [*command, "--grpc-port", "0", "--engine", "eager", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said:
                assert process.stderr is not None
                raise JobFailedError(f"The service does not start: {process.stderr.read()[-500:]}")
            yield json.loads(said)["url"]
        finally:
            process.terminate()


def _free_folder(folder: Path | None, settings: Settings) -> Path:
    """Return the folder named, or the first of demo/, demo-2/, … that is free."""
    if folder is not None:
        if folder.exists():
            raise OutputExistsError(f"{folder} exists already; name a folder that is new.")
        return folder.absolute()
    number = 1
    while True:
        candidate = settings.home_folder / ("demo" if number == 1 else f"demo-{number}")
        if not candidate.exists():
            return candidate
        number += 1


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
