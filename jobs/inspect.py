"""Look at labelled images before a model learns them: what can be read, copies, classes, a split.

    python -m eagleray.jobs.inspect flowers/ --output report.html
    eagleray inspect flowers/ --output report.html
    eagleray inspect photos.csv --label-column kind --group-column camera --output report.html
    eagleray inspect tags.parquet --task multilabel --separator , --output report.html
    eagleray inspect flowers/ --keep-duplicates-together --split-file s.parquet \
        --output report.html

Reads from top to bottom: build, run, report, and last the words of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from eagleray.cli.console import Console, command_errors
from eagleray.cli.job import (
    ClusterOption,
    JsonOption,
    S3AnonymousOption,
    S3EndpointOption,
    S3ProfileOption,
    S3RegionOption,
    S3RequesterPaysOption,
    VerboseOption,
    job_session,
    job_settings,
    run_command,
    s3_options,
)
from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.inspection import Inspection, inspect_images
from eagleray.data.labelled import (
    LabelledImages,
    encode_labels,
    join_images,
    read_labelled,
    require_enough,
)
from eagleray.data.near_duplicates import group_duplicates
from eagleray.data.report import DataReport, make_report, render_data_report
from eagleray.data.split import (
    Split,
    describe_missing_splits,
    merge_groups,
    require_no_splits,
    require_single_test_set,
    split_images,
    write_split,
)
from eagleray.imaging import FORMATS, NAMED_CONTRACTS, ImageContract, named_contract
from eagleray.io import storage
from eagleray.io.storage import S3Options
from eagleray.tasks.tasks import TaskName, make_task


@dataclass(frozen=True)
class InspectSpec:
    """What is to be looked at, as it was asked for; the words of `main` say what each is."""

    data: str
    output: str
    task: TaskName = "multiclass"
    contract: str = "fast"
    column: str | None = None
    label_column: str | None = None
    label_columns: tuple[str, ...] = ()
    separator: str | None = None
    group_column: str | None = None
    keep_duplicates_together: bool = False
    test_data: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    split_file: str | None = None
    s3: S3Options = field(default_factory=S3Options)


@dataclass(frozen=True)
class InspectJob:
    """A specification with all that it needs, checked.

    Attributes:
        spec: What was asked for.
        images: The rows that are divided.
        own_test: A test set of its own.
        groups: A key for each row, if there is a group column.
        contract: How images are decoded.
        settings: Of this process.
    """

    spec: InspectSpec
    images: LabelledImages
    own_test: LabelledImages | None
    groups: tuple[str, ...] | None
    contract: ImageContract
    settings: Settings

    @property
    def all_images(self) -> LabelledImages:
        """The rows that are looked at."""
        return self.images if self.own_test is None else join_images(self.images, self.own_test)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the data were read, and what was skipped."""
        lacking = describe_missing_splits(self.images, has_own_test=self.own_test is not None)
        return (*self.all_images.notes, *lacking)


@dataclass(frozen=True)
class InspectSummary:
    """What was found."""

    report: DataReport
    split: Split
    data_digest: str
    output: str
    split_file: str | None

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            **self.report.as_json(),
            "data_digest": self.data_digest,
            "split_digest": self.split.digest,
            "test_digest": self.split.test.digest,
            "report": self.output,
            "split_file": self.split_file,
        }


def build(spec: InspectSpec, settings: Settings) -> InspectJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: With what to mend.
    """
    storage.use_s3(spec.s3)
    _require_fractions(spec)
    _require_outputs(spec)
    contract = named_contract(spec.contract, formats=FORMATS)
    images, own_test = _read(spec, spec.data), None
    require_enough(images, spec.task, spec.data)
    if spec.test_data is not None:
        require_single_test_set(images, spec.data, spec.test_data)
        own_test = _read(spec, spec.test_data)
        require_no_splits(own_test, spec.test_data)
    if images.splits and spec.keep_duplicates_together:
        raise InputError(
            f"--keep-duplicates-together divides the data, and {spec.data} comes divided; leave it "
            "out, or put all images together."
        )
    job = InspectJob(spec, images, own_test, _groups(spec, images), contract, settings)
    task = make_task(spec.task, images.labels, images.uris)
    if own_test is not None:
        encode_labels(task, own_test)
    _split(job, job.groups)  # it may be impossible
    return job


def _require_fractions(spec: InspectSpec) -> None:
    for flag, fraction in (
        ("--validation-fraction", spec.validation_fraction),
        ("--test-fraction", spec.test_fraction),
    ):
        if not 0 <= fraction < 1:
            raise InputError(f"{flag} must be from 0 to below 1, not {fraction:g}.")
    test_fraction = 0.0 if spec.test_data else spec.test_fraction
    if spec.validation_fraction + test_fraction >= 1:
        raise InputError(
            "--validation-fraction and --test-fraction leave nothing to train on; lower one."
        )


def _require_outputs(spec: InspectSpec) -> None:
    if not spec.output.lower().endswith((".html", ".htm")):
        raise InputError(f"The report is a page: {spec.output!r} must end in .html.")
    if spec.split_file is None:
        return
    if not spec.split_file.lower().endswith((".parquet", ".pq")):
        raise InputError(f"The split is a Parquet file: {spec.split_file!r} must end in .parquet.")
    if storage.exists(spec.split_file):
        raise OutputExistsError(
            f"{spec.split_file} is there already, and a split is kept; name another file."
        )


def _read(spec: InspectSpec, location: str) -> LabelledImages:
    return read_labelled(
        location,
        uri_column=spec.column,
        label_column=spec.label_column,
        label_columns=spec.label_columns,
        separator=spec.separator,
        task=spec.task,
    )


def _groups(spec: InspectSpec, images: LabelledImages) -> tuple[str, ...] | None:
    if spec.group_column is None:
        return None
    if spec.group_column not in images.attributes:
        known = ", ".join(images.attributes) or "none beside those of images and labels"
        raise UnknownNameError(
            f"column of {spec.data}",
            spec.group_column,
            images.attributes,
            hint=f"It has: {known}.",
        )
    return images.attributes[spec.group_column]


def _split(job: InspectJob, groups: Sequence[str] | None) -> Split:
    spec = job.spec
    split = split_images(
        job.images,
        stratify=spec.task in ("multiclass", "binary"),
        validation_fraction=spec.validation_fraction,
        test_fraction=0.0 if job.own_test is not None else spec.test_fraction,
        seed=spec.seed,
        groups=groups,
    )
    return split if job.own_test is None else Split(split.train, split.validation, job.own_test)


def run(job: InspectJob, cluster: Cluster, console: Console) -> InspectSummary:
    """Look at every image, divide the data, write the page and the split."""
    spec, images = job.spec, job.all_images
    with console.progress("Inspecting", len(images)) as bar:
        inspection = inspect_images(
            images,
            job.contract,
            cluster=cluster,
            cache_folder=job.settings.cache_folder,
            s3=spec.s3,
            progress=lambda count, failed: bar.advance(count, failed=failed),
        )
    with console.status("Looking for copies"):
        split = _split(job, _groups_with_copies(job, inspection))
        report = make_report(split, inspection, spec.task, notes=job.notes)
        page = render_data_report(report, _about(job, split), title=f"The data of {spec.data}")
    _write_page(spec.output, page)
    if spec.split_file is not None:
        write_split(split, spec.split_file, data_digest=images.digest, seed=spec.seed)
    return InspectSummary(report, split, images.digest, spec.output, spec.split_file)


def _groups_with_copies(job: InspectJob, inspection: Inspection) -> tuple[str, ...] | None:
    if not job.spec.keep_duplicates_together:
        return job.groups
    copies = group_duplicates(inspection)[: len(job.images)]
    return copies if job.groups is None else merge_groups(job.groups, copies)


def _about(job: InspectJob, split: Split) -> dict[str, object]:
    spec = job.spec
    about: dict[str, object] = {"data": spec.data, "task": spec.task, "contract": spec.contract}
    if spec.test_data is not None:
        about["test data"] = spec.test_data
    about["seed of the split"] = spec.seed
    if spec.group_column is not None:
        about["rows kept together by"] = spec.group_column
    if spec.keep_duplicates_together:
        about["copies"] = "kept together"
    return {
        **about,
        "data digest": job.all_images.digest,
        "split digest": split.digest,
        "test digest": split.test.digest,
    }


def _write_page(location: str, page: bytes) -> None:
    try:
        storage.put_atomic(location, page)
    except OSError as error:
        raise InputError(
            f"The report cannot be written to {location} ({error.strerror or error})."
        ) from error


def show(summary: InspectSummary, console: Console) -> None:
    """Tell the user what was found."""
    if console.for_scripts:
        console.emit(summary.as_json())
        return
    report = summary.report
    facts: dict[str, object] = {
        "images": f"{report.num_images:,} ({len(report.unreadable):,} unreadable)",
        "parts": ", ".join(f"{name} {count:,}" for name, count in report.parts.items()),
    }
    if report.classes:
        ratio = f"the largest has {report.imbalance:.1f} times the images of the smallest"
        facts["classes"] = f"{len(report.classes):,}; {ratio}"
    facts["formats"] = ", ".join(f"{name} {count:,}" for name, count in report.formats.items())
    facts["report"] = summary.output
    if summary.split_file is not None:
        facts["split"] = summary.split_file
    console.facts("The data", facts)
    for warning in report.warnings:
        console.warn(f"warning: {warning}")


def main(
    data: Annotated[
        str,
        typer.Argument(help="Folder with a folder for each class, or a table.", metavar="DATA"),
    ],
    output: Annotated[str, typer.Option(help="HTML file for the report; may be there already.")],
    task: Annotated[TaskName, typer.Option(help="What is to be learned.")] = "multiclass",
    column: Annotated[str | None, typer.Option(help="Table column of the locations.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Table column of the labels.")] = None,
    label_columns: Annotated[
        list[str] | None,
        typer.Option(help="Column of 0 and 1, named after the label that it says. Repeatable."),
    ] = None,
    separator: Annotated[
        str | None, typer.Option(help="Between several labels in a column, if not a |.")
    ] = None,
    group_column: Annotated[
        str | None, typer.Option(help="Rows with the same value in it stay in one part.")
    ] = None,
    keep_duplicates_together: Annotated[
        bool, typer.Option("--keep-duplicates-together", help="So do copies, exact or near.")
    ] = False,
    test_data: Annotated[
        str | None, typer.Option(help="A test set of its own, in the form of DATA.")
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="To choose the best epoch by.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Held out to the end.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    split_file: Annotated[
        str | None, typer.Option(help="New Parquet file: which image is in which part.")
    ] = None,
    contract: Annotated[
        str, typer.Option(help=f"Image contract: {', '.join(NAMED_CONTRACTS)}.")
    ] = "fast",
    s3_endpoint: S3EndpointOption = None,
    s3_region: S3RegionOption = None,
    s3_profile: S3ProfileOption = None,
    s3_anonymous: S3AnonymousOption = False,
    s3_requester_pays: S3RequesterPaysOption = False,
    cluster: ClusterOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look at labelled images before a model learns them, and divide them once."""
    with command_errors():
        console = Console(json_output=json_output)
        settings = job_settings(cluster=cluster)
        spec = InspectSpec(
            data=data,
            output=output,
            task=task,
            contract=contract,
            column=column,
            label_column=label_column,
            label_columns=tuple(label_columns or ()),
            separator=separator,
            group_column=group_column,
            keep_duplicates_together=keep_duplicates_together,
            test_data=test_data,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            seed=seed,
            split_file=split_file,
            s3=s3_options(
                settings,
                endpoint=s3_endpoint,
                region=s3_region,
                profile=s3_profile,
                anonymous=s3_anonymous,
                requester_pays=s3_requester_pays,
            ),
        )
        job = build(spec, settings)
        for note in job.notes:
            console.note(note)
        console.note(f"scanning {len(job.all_images):,} images")
        with job_session(settings, address=cluster, verbose=verbose) as session:
            summary = run(job, session, console)
        show(summary, console)


if __name__ == "__main__":
    run_command(main, module_docstring=__doc__)
