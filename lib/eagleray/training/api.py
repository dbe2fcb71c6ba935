"""Trains from Python, as `eagleray train` does from the command line.

from eagleray import TrainSpec, train

result = train(TrainSpec(data="flowers/", name="flowers", architecture="resnet18"))
print(result.version.reference, result.metrics["accuracy"], result.run.folder)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from eagleray.core.callbacks import ProgressBar, ProgressReporter
from eagleray.core.environment import bypass_proxy_for_loopback
from eagleray.core.errors import InputError
from eagleray.core.ray_session import ray_session
from eagleray.core.settings import Settings, read_settings
from eagleray.training.callback import TrainCallback
from eagleray.training.job import run_job
from eagleray.training.prepare import open_job, reopen_job
from eagleray.training.spec import TrainSpec
from eagleray.training.summary import TrainSummary

__all__ = ["train"]

_LOG = logging.getLogger("eagleray.train")


def train(
    spec: TrainSpec | None = None,
    *,
    resume: str | None = None,
    callbacks: Sequence[TrainCallback] = (),
    alias: str | None = None,
    force: bool = False,
    cluster: str | None = None,
    reporter: ProgressReporter | None = None,
    settings: Settings | None = None,
) -> TrainSummary:
    """Train a model, test it once and register it as a version.

    A Ray that this process is connected to is used; otherwise one is started on this machine and
    stopped again, or the named cluster is joined.

    Args:
        spec: Specification of a new run.
        resume: Name of a run to resume, instead of a specification.
        callbacks: Called while training runs; they may stop it.
        alias: Alias that will point to the new version; None for `candidate`, if the version is
            better than the present one.
        force: Move the alias from a model of another task, labels or input too.
        cluster: Address of a Ray cluster, such as `auto`.
        reporter: Shows progress; the default logs notes and warnings to the logger
            `eagleray.train`.
        settings: Settings; the default reads them from the environment.

    Returns:
        The run, the version, its test metrics (`metrics`) and the epochs (`result`).

    Raises:
        UserError: If the specification cannot be carried out; the message says how to fix it.
        JobFailedError: If training started and cannot finish.
        Exception: What a callback has raised.
    """
    if (spec is None) == (resume is None):
        raise InputError("Pass either a specification or the name of a run to resume.")
    if spec is not None and spec.folds:
        raise InputError("folds: cross-validation registers no version; run `eagleray train`.")
    bypass_proxy_for_loopback()
    settings = settings or read_settings()
    settings.make_home()
    if spec is not None:
        job = open_job(spec, settings, alias=alias, force=force)
    else:
        assert resume is not None
        job = reopen_job(resume, settings)
    reporter = reporter or _LogReporter()
    for note in job.plan.notes:
        reporter.note(note)
    with ray_session(settings, address=cluster) as session:
        return run_job(job, session, reporter, callbacks)


class _LogReporter:
    """Writes notes and warnings to a log."""

    def note(self, text: str) -> None:
        _LOG.info("%s", text)

    def announce(self, text: str) -> None:
        self.note(text)

    def warn(self, text: str) -> None:
        _LOG.warning("%s", text)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        self.note(text)
        yield

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[ProgressBar]:
        self.note(f"{description}: {total:,}")
        yield _NoBar()


class _NoBar:
    """Logs the lines that stay, such as that of an epoch."""

    def advance(self, count: int, *, failed: int = 0, note: str | None = None) -> None:
        pass

    def line(self, text: str) -> None:
        _LOG.info("%s", text)
