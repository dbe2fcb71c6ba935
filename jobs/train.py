"""Train a model on several workers and register the best epoch as a version.

    python -m jobs.train flowers/ --name flowers --architecture resnet18 --pretrained
    eagleray train flowers/ --name flowers --architecture resnet18 --workers 2
    eagleray train digits.csv --name digits --architecture lenet5 --workers 2 --epochs 20
    eagleray train cifar10/train --test-data cifar10/test --name cifar10 --architecture resnet20

Reads from top to bottom: the request, build, run, report, and last the words of the command line.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any

import safetensors.torch
import torch
import typer
from pydantic import ValidationError
from torch import nn

from eagleray import storage
from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import ClusterOption, JsonOption, VerboseOption, job_session, run_command
from eagleray.cluster import Cluster
from eagleray.datasets.labelled import LabelledImages, read_labelled, require_enough
from eagleray.datasets.split import Split, split_images
from eagleray.errors import BadImageError, InputError
from eagleray.evaluation.evaluate import Evaluation, evaluate
from eagleray.imaging import ImageContract, decode
from eagleray.imaging.contract import NAMED_CONTRACTS, first_fault
from eagleray.models.architectures import (
    Architecture,
    architecture_for,
    build_pretrained,
    check_fits,
    default_contract,
    require_architecture,
)
from eagleray.models.architectures import (
    build as build_network,
)
from eagleray.models.package import Lineage, ModelPackage, create_package
from eagleray.models.registry import ModelVersion, Registry, require_alias
from eagleray.models.tasks import Task, TaskName, make_task
from eagleray.predictor import Predictor
from eagleray.settings import Settings, read_settings
from eagleray.training.launch import TrainedWeights, require_workers, run_training
from eagleray.training.loop import EpochReport, WorkerInput, primary_metric
from eagleray.training.spec import Optimizer, TrainPrecision, TrainSpec

NUM_GOLDEN = 4
MOST_GOLDEN_BYTES = 2**20


@dataclass(frozen=True)
class TrainJob:
    """A specification with all that it needs, checked."""

    spec: TrainSpec
    split: Split
    data_digest: str
    task: Task
    architecture: Architecture
    contract: ImageContract
    module: nn.Module
    registry: Registry
    settings: Settings
    alias: str


@dataclass(frozen=True)
class TrainSummary:
    """What became of the run."""

    version: ModelVersion
    evaluation: Evaluation
    trained: TrainedWeights
    bad_images: tuple[tuple[str, str, str], ...]

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "model": self.version.reference,
            "aliases": list(self.version.aliases),
            "package_digest": self.version.digest,
            "test": self.evaluation.metrics,
            "test_images": self.evaluation.num_images,
            "test_images_failed": self.evaluation.num_failed,
            "validation": self.trained.metrics,
            "left_out": [
                {"uri": uri, "reason": reason, "message": message}
                for uri, reason, message in self.bad_images
            ],
            "run": self.version.run_id,
            "checkpoints": self.trained.folder,
        }


def build(spec: TrainSpec, settings: Settings, *, alias: str) -> TrainJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: With what to mend.
    """
    require_alias(alias)
    require_architecture(spec.architecture)
    contract = default_contract(spec.architecture, spec.contract, size=spec.image_size)
    images = read_labelled(spec.data, uri_column=spec.column, label_column=spec.label_column)
    require_enough(images, spec.task, spec.data)
    split = _split(spec, images)
    task = make_task(spec.task, images.texts)
    for text in split.test.texts:
        task.encode(text)
    architecture = architecture_for(spec.architecture, contract, task.num_outputs)
    check_fits(architecture, *contract.size)
    registry = Registry(settings)
    torch.manual_seed(spec.seed)
    if spec.pretrained:
        module, architecture = build_pretrained(
            spec.architecture, in_channels=contract.channels, num_outputs=task.num_outputs
        )
    else:
        module = build_network(architecture)
    return TrainJob(
        spec=spec,
        split=split,
        data_digest=images.digest,
        task=task,
        architecture=architecture,
        contract=contract,
        module=module,
        registry=registry,
        settings=settings,
        alias=alias,
    )


def _split(spec: TrainSpec, images: LabelledImages) -> Split:
    own_test = None
    if spec.test_data is not None:
        own_test = read_labelled(
            spec.test_data, uri_column=spec.column, label_column=spec.label_column
        )
    elif spec.test_fraction == 0:
        raise InputError("Nothing is left to test on: name --test-data, or a --test-fraction.")
    split = split_images(
        images,
        stratify=spec.task in ("multiclass", "binary"),
        validation_fraction=spec.validation_fraction,
        test_fraction=0.0 if own_test else spec.test_fraction,
        seed=spec.seed,
    )
    return Split(split.train, split.validation, own_test or split.test)


def run(job: TrainJob, cluster: Cluster, console: Console) -> TrainSummary:
    """Train, test once, register."""
    require_workers(job.spec.workers, cluster)
    reports: list[EpochReport] = []
    with job.registry.start_run(f"train {job.spec.name}") as tracked:
        tracked.log_parameters(job.spec.model_dump())
        with console.progress("Epochs", job.spec.epochs) as bar:

            def listen(report: EpochReport) -> None:
                reports.append(report)
                if not report.metrics:
                    bar.advance(0, note=report.stopped or _bad_note(report))
                else:
                    tracked.log_metrics(report.metrics, step=report.epoch)
                    bar.advance(1, note=_epoch_note(report, job))

            trained = run_training(
                _worker_input(job),
                job.module,
                runs_folder=str(job.settings.runs_folder),
                cluster=cluster,
                listener=listen,
            )
        with console.status("Testing and registering"):
            lineage = Lineage.now(data_digest=job.data_digest, run=tracked.run_id)
            evaluation = _test(job, lineage)
            package = _package(job, lineage, evaluation, golden=_golden_images(job))
            version = job.registry.register(package, run=tracked, alias=job.alias)
            tracked.log_metrics(
                {f"test_{name}": value for name, value in evaluation.headline.items()},
                step=job.spec.epochs,
            )
    bad_images = tuple(bad for report in reports for bad in report.bad_images)
    return TrainSummary(version, evaluation, trained, bad_images)


def _worker_input(job: TrainJob) -> WorkerInput:
    weights = {key: value.contiguous() for key, value in job.module.state_dict().items()}
    return WorkerInput(
        spec=job.spec,
        task=job.task,
        architecture=job.architecture,
        contract=job.contract,
        train=job.split.train,
        validation=job.split.validation,
        initial_weights=safetensors.torch.save(weights),
        cache_folder=str(job.settings.cache_folder),
        run=f"{job.spec.name}-{secrets.token_hex(4)}",
        mailbox=None,
    )


def _bad_note(report: EpochReport) -> str:
    return f"{len(report.bad_images)} images left out" if report.bad_images else ""


def _epoch_note(report: EpochReport, job: TrainJob) -> str:
    metric = primary_metric(job.task)
    name = metric.removeprefix("validation_")
    return f"loss {report.metrics['train_loss']:.3f}  {name} {report.metrics[metric]:.4f}"


def _test(job: TrainJob, lineage: Lineage) -> Evaluation:
    """Measure on the test part, once, through the predictor that everybody uses."""
    draft = _package(job, lineage, None, golden=[])
    predictor = Predictor(
        draft,
        expected_images=len(job.split.test),
        compile_mode="never",
        cache_folder=job.settings.cache_folder,
    )
    return evaluate(predictor, job.split.test)


def _package(
    job: TrainJob, lineage: Lineage, evaluation: Evaluation | None, *, golden: list[bytes]
) -> ModelPackage:
    metrics = {} if evaluation is None else evaluation.headline
    return create_package(
        name=job.spec.name,
        task=job.task,
        architecture=job.architecture,
        contract=job.contract,
        module=job.module.eval(),
        lineage=lineage,
        metrics={f"test_{name}": value for name, value in metrics.items()},
        golden_images=golden,
    )


def _golden_images(job: TrainJob) -> list[bytes]:
    """Return a few good images of the validation part, small enough to travel with the model."""
    found: list[bytes] = []
    for uri in job.split.validation.uris:
        try:
            data = storage.read_bytes(uri, limit=MOST_GOLDEN_BYTES + 1)
            decode(data, job.contract)
        except (OSError, BadImageError):
            continue
        if len(data) <= MOST_GOLDEN_BYTES:
            found.append(data)
        if len(found) == NUM_GOLDEN:
            break
    return found


def show(summary: TrainSummary, console: Console) -> None:
    """Tell the user what became of the run."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    evaluation = summary.evaluation
    facts: dict[str, object] = {
        f"test {name}": f"{value:.4f}" for name, value in evaluation.headline.items()
    }
    facts["test images"] = f"{evaluation.num_images:,} ({evaluation.num_failed} unreadable)"
    facts["left out of training"] = f"{len(summary.bad_images):,}"
    facts["registered as"] = summary.version.reference
    facts["aliases"] = ", ".join(summary.version.aliases)
    facts["checkpoints"] = summary.trained.folder
    console.facts(f"Model {summary.version.name}", facts)
    for uri, reason, message in summary.bad_images[:10]:
        console.warn(f"left out: {uri}: {reason}: {message}")


def main(
    data: Annotated[
        str, typer.Argument(help="Folder with a folder for each class, or a CSV.", metavar="DATA")
    ],
    name: Annotated[str, typer.Option(help="Of the model that is registered.")],
    architecture: Annotated[
        str, typer.Option(help="See `eagleray models architectures`.")
    ] = "resnet18",
    task: Annotated[TaskName, typer.Option(help="What the model answers.")] = "multiclass",
    pretrained: Annotated[bool, typer.Option(help="Start from published weights.")] = False,
    contract: Annotated[
        str | None, typer.Option(help=f"Image contract: {', '.join(NAMED_CONTRACTS)}.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels.")] = None,
    column: Annotated[str | None, typer.Option(help="CSV column of the locations.")] = None,
    label_column: Annotated[str | None, typer.Option(help="CSV column of the labels.")] = None,
    test_data: Annotated[
        str | None, typer.Option(help="A test set of its own, in the form of DATA.")
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="To choose the best epoch by.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Held out to the end.")] = 0.2,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Over all workers together.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Highest of the schedule.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="Pull of the weights to zero.")] = 1e-4,
    optimizer: Annotated[Optimizer, typer.Option(help="How weights move.")] = "adamw",
    label_smoothing: Annotated[float, typer.Option(help="Share spread over all classes.")] = 0.0,
    shift: Annotated[
        float, typer.Option(help="Farthest random move of an image, as a share of its side.")
    ] = 0.0,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror every second image.")] = False,
    precision: Annotated[TrainPrecision, typer.Option(help="Of the products.")] = "float32",
    workers: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    alias: Annotated[str, typer.Option(help="Points to the new version.")] = "candidate",
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a model on several workers; the best epoch becomes a version of the registry."""
    with command_errors():
        console = Console(json_output=json_output)
        try:
            spec = TrainSpec(
                data=data,
                name=name,
                architecture=architecture,
                task=task,
                pretrained=pretrained,
                contract=contract,
                image_size=image_size,
                column=column,
                label_column=label_column,
                test_data=test_data,
                validation_fraction=validation_fraction,
                test_fraction=test_fraction,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                optimizer=optimizer,
                label_smoothing=label_smoothing,
                shift=shift,
                flip=flip,
                precision=precision,
                workers=workers,
                seed=seed,
            )
        except ValidationError as error:
            raise InputError(f"{first_fault(error)}.") from None
        job = build(spec, read_settings(), alias=alias)
        console.note(
            f"{len(job.split.train):,} images to learn, {len(job.split.validation):,} to choose "
            f"by, {len(job.split.test):,} to test on; {job.task.name}, {spec.architecture}"
        )
        with job_session(job.settings, address=cluster, verbose=verbose) as session:
            summary = run(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
