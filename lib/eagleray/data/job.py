"""An inspection of labelled images, from its specification to its report and its split.

spec -> open_inspection   reads the labels, checks everything that can be wrong
-> run_inspection    decodes every image, finds duplicates, divides the data
-> InspectSummary    what was found; `jobs/inspect.py` prints it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.analysis import make_report
from eagleray.data.data_warnings import Remedies
from eagleray.data.groups import merge_groups
from eagleray.data.inspection import Inspection, scan_images
from eagleray.data.labelled import (
    LabelledImages,
    encode_labels,
    join_images,
    read_labelled,
    require_enough,
)
from eagleray.data.near_duplicates import group_duplicates
from eagleray.data.page import render_data_report
from eagleray.data.report import DataReport
from eagleray.data.spec import InspectSpec
from eagleray.data.split import (
    SPLIT_NAMES,
    Split,
    describe_missing_splits,
    require_no_splits,
    require_single_test_set,
    split_images,
)
from eagleray.data.split_file import write_split
from eagleray.imaging import FORMATS, ImageContract, named_contract
from eagleray.io import storage
from eagleray.models.compositions import find_composition
from eagleray.tasks import make_task, task_class

__all__ = ["InspectJob", "InspectSummary", "open_inspection", "run_inspection"]

_CONTRACT = "fast"  # of classifiers: much quicker than that of training, and alike to look at


@dataclass(frozen=True)
class InspectJob:
    """A checked inspection.

    Attributes:
        spec: Specification of the inspection.
        images: Images that are divided.
        own_test: Images of a separate test set; None without one.
        groups: Group of each image; None without a group column.
        contract: Image contract by which images are decoded.
        settings: Settings of this process.
    """

    spec: InspectSpec
    images: LabelledImages
    own_test: LabelledImages | None
    groups: tuple[str, ...] | None
    contract: ImageContract
    settings: Settings

    @property
    def all_images(self) -> LabelledImages:
        """All images that are inspected."""
        return self.images if self.own_test is None else join_images(self.images, self.own_test)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the data were read, and what was skipped."""
        lacking = describe_missing_splits(self.images, has_own_test=self.own_test is not None)
        return (*self.all_images.notes, *lacking)


@dataclass(frozen=True)
class InspectSummary:
    """The result of an inspection."""

    report: DataReport
    split: Split
    data_digest: str
    output: str
    split_file: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the summary for scripts."""
        return {
            **self.report.as_json(),
            "data_digest": self.data_digest,
            "split_digest": self.split.digest,
            "test_digest": self.split.test.digest,
            "report": self.output,
            "split_file": self.split_file,
        }


def open_inspection(spec: InspectSpec, settings: Settings) -> InspectJob:
    """Check everything that can be wrong before expensive work starts.

    Raises:
        UserError: If the data or the output cannot be used; the message says how to fix it.
    """
    storage.use_s3(spec.s3)
    _require_new_split_file(spec)
    contract = _contract(spec)
    images, own_test = _read(spec, spec.data), None
    require_enough(images, spec.task, spec.data)
    if spec.test_data is not None:
        require_single_test_set(images, spec.data, spec.test_data)
        own_test = _read(spec, spec.test_data)
        require_no_splits(own_test, spec.test_data)
    if images.splits and spec.keep_duplicates_together:
        raise InputError(
            f"{spec.name_of('keep_duplicates_together')}: this divides the data, and {spec.data} "
            "has splits of its own; leave it out, or put all images together."
        )
    job = InspectJob(spec, images, own_test, _groups(spec, images), contract, settings)
    task = make_task(spec.task, images.labels, images.places)
    if own_test is not None:
        encode_labels(task, own_test)
    _split(job, job.groups)  # it may be impossible
    return job


def _require_new_split_file(spec: InspectSpec) -> None:
    if spec.split_file is not None and storage.exists(spec.split_file):
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
        policy=spec.path_policy,
        max_invalid=spec.max_invalid,
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
            where=spec.name_of("group_column"),
        )
    return images.attributes[spec.group_column]


def _split(job: InspectJob, groups: Sequence[str] | None) -> Split:
    spec = job.spec
    split = split_images(
        job.images,
        stratify=task_class(spec.task).label_coverage == "all",
        validation_fraction=spec.validation_fraction,
        test_fraction=0.0 if job.own_test is not None else spec.test_fraction,
        seed=spec.seed,
        groups=groups,
    )
    return split if job.own_test is None else Split(split.train, split.validation, job.own_test)


def run_inspection(job: InspectJob, cluster: Cluster, reporter: ProgressReporter) -> InspectSummary:
    """Decode every image, divide the data, and write the report and the split file."""
    spec, images = job.spec, job.all_images
    inspection = scan_images(
        images, job.contract, cluster, reporter, settings=job.settings, s3=spec.s3
    )
    with reporter.status("Searching for duplicates"):
        split = _split(job, _groups_with_duplicates(job, inspection))
        report = make_report(split, inspection, spec.task, notes=job.notes, remedies=_remedies(job))
        page = render_data_report(report, _about(job, split), title=f"Data report of {spec.data}")
    _write_page(spec.output, page)
    if spec.split_file is not None:
        write_split(split, spec.split_file, data_digest=images.digest, seed=spec.seed)
    return InspectSummary(report, split, images.digest, spec.output, spec.split_file)


def _contract(spec: InspectSpec) -> ImageContract:
    """Return the named contract, or the one of the task's usual network if it takes whole images.

    Raises:
        InputError: If no contract has the name.
    """
    network = find_composition(task_class(spec.task).default_architecture)
    if network is None:
        return named_contract(spec.contract or _CONTRACT, formats=FORMATS)
    return named_contract(spec.contract or network.contract, size=network.size, formats=FORMATS)


def _contract_name(spec: InspectSpec) -> str:
    network = find_composition(task_class(spec.task).default_architecture)
    return spec.contract or (_CONTRACT if network is None else network.contract)


def _remedies(job: InspectJob) -> Remedies:
    if job.spec.keep_duplicates_together or job.images.splits:
        return Remedies(divided=())
    return Remedies(divided=("validation",) if job.own_test is not None else SPLIT_NAMES)


def _groups_with_duplicates(job: InspectJob, inspection: Inspection) -> tuple[str, ...] | None:
    if not job.spec.keep_duplicates_together:
        return job.groups
    duplicates = group_duplicates(inspection)[: len(job.images)]
    return duplicates if job.groups is None else merge_groups(job.groups, duplicates)


def _about(job: InspectJob, split: Split) -> dict[str, object]:
    spec = job.spec
    about: dict[str, object] = {
        "data": spec.data,
        "task": spec.task,
        "contract": _contract_name(spec),
    }
    if spec.test_data is not None:
        about["test data"] = spec.test_data
    positive = make_task(spec.task, job.images.labels).positive
    if positive is not None:
        about["positive label"] = (
            f"{positive}, the second in alphabetical order; `eagleray train --positive` may name "
            "the other"
        )
    about["split seed"] = spec.seed
    if spec.group_column is not None:
        about["group column"] = spec.group_column
    if spec.keep_duplicates_together:
        about["duplicates"] = "kept in one split"
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
