"""Prepares an output for a job: checks that it can be used, lists the inputs, claims the plan."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from eagleray.core.callbacks import ProgressReporter
from eagleray.core.errors import InputError, OutputExistsError
from eagleray.io import storage
from eagleray.sharded.layout import OutputLayout
from eagleray.sharded.manifest import DEFAULT_LIMITS, ShardLimits, write_manifest
from eagleray.sharded.plan import Plan, claim_plan, new_id
from eagleray.sources import Listing

__all__ = ["make_plan", "require_free", "require_writable"]

P = TypeVar("P", bound=Plan[Any])

_SECONDS_BETWEEN_NOTES = 2.0


def require_free(layout: OutputLayout) -> None:
    """Refuse an output that holds files of others.

    Raises:
        OutputExistsError: If it does, or is a file.
    """
    if storage.exists(layout.location) and _is_file(layout.location):
        raise OutputExistsError(f"Output {layout.location} is a file; name a folder.")
    # If there is a plan by now, another run of this job has just begun.
    if layout.holds_other_files() and not storage.exists(layout.plan):
        raise OutputExistsError(
            f"Output {layout.location} is not empty, and what is there is never overwritten; name "
            "another folder."
        )


def _is_file(location: str) -> bool:
    """Ask in one call: a run beside this one could change the answer between two."""
    try:
        storage.size_of(location)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def require_writable(layout: OutputLayout) -> None:
    """Refuse an output that cannot be written.

    Raises:
        InputError: If the storage refuses.
    """
    with _write_errors(layout):
        probe = storage.join(layout.private, f"probe-{new_id()}")
        storage.put_atomic(probe, b"")
        storage.delete(probe)


def make_plan(
    layout: OutputLayout,
    listing: Listing,
    build: Callable[..., P],
    reporter: ProgressReporter,
    *,
    limits: ShardLimits = DEFAULT_LIMITS,
) -> P:
    """List the inputs in a manifest and claim the plan, or join the run that claimed it first.

    Args:
        layout: The output.
        listing: The inputs.
        build: Makes the plan from the fields that all kinds of plans share.
        reporter: Receives the progress.
        limits: Limits of the shards.

    Raises:
        InputError: If the output cannot be written or there are no inputs.
        OutputExistsError: If another run claimed the output for different work.
    """
    name = f"manifest-{new_id()}"
    was_there = storage.exists(layout.location)
    require_writable(layout)
    with _removed_on_error(layout, name, was_there=was_there), _write_errors(layout):
        manifest = write_manifest(
            listing.tables,
            listing.user_schema,
            layout.manifest(name),
            limits=limits,
            on_rows=_note_rows(reporter),
        )
    plan = build(
        job_id=new_id(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        manifest=name,
        manifest_digest=manifest.digest,
        num_rows=manifest.num_rows,
        num_shards=manifest.num_shards,
        remarks=listing.all_notes(),
        skipped=dict(listing.skipped.counts),
    )
    claimed = claim_plan(layout, plan)
    if claimed.manifest != name:
        layout.remove_folder(layout.manifest(name))
        reporter.note(f"Another run of this job was first; joining it as {claimed.job_id}.")
    return claimed


def _note_rows(reporter: ProgressReporter) -> Callable[[int], None]:
    last = time.monotonic()

    def on_rows(num_rows: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_NOTES:
            last = time.monotonic()
            reporter.note(f"{num_rows:,} images listed so far")

    return on_rows


@contextlib.contextmanager
def _removed_on_error(layout: OutputLayout, manifest: str, *, was_there: bool) -> Iterator[None]:
    """Remove an incomplete manifest, and the folders made for it.

    Args:
        layout: The output.
        manifest: Name of the manifest.
        was_there: Whether the output's folder existed before.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, InputError):  # the first error is the one to report
            layout.remove_folder(layout.manifest(manifest))
            storage.remove_empty_folder(layout.private)
            if not was_there:
                storage.remove_empty_folder(layout.location)
        raise


@contextlib.contextmanager
def _write_errors(layout: OutputLayout) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Output {layout.location} cannot be written ({error.strerror or error}); name another "
            "folder."
        ) from error
