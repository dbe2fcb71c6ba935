"""What a user asks of a batch job: frozen values that refuse what cannot be meant."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from eagleray.batch.plan import Work
from eagleray.batch.sinks.sql import SqlSink
from eagleray.core.errors import InputError
from eagleray.core.types import CompileMode, OutputFormat, Precision
from eagleray.io import storage
from eagleray.io.http import UrlPolicy
from eagleray.registry.references import LoadedModel

__all__ = ["FailureLimit", "JobRequest"]

MAX_TOP_K = 1000


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many inputs may fail before a job stops: a share of all, or a number.

    Attributes:
        share: Of all inputs, 0 to 1; None for a number.
        number: Of inputs; None for a share.
    """

    share: float | None = None
    number: int | None = None

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Read `1%`, `0.5 %` or `200`.

        Raises:
            InputError: It is neither.
        """
        try:
            if text.strip().endswith("%"):
                share = float(text.strip()[:-1]) / 100
                if 0 <= share <= 1:
                    return cls(share=share)
            elif int(text) >= 0:
                return cls(number=int(text))
        except ValueError:
            pass
        raise InputError(f"--max-failures must be like 1% or 200, not {text!r}.")

    def allows(self, num_failed: int, num_rows: int) -> bool:
        """Whether so many failures of so many inputs are within the limit."""
        if self.share is not None:
            return num_failed <= self.share * num_rows
        return self.number is None or num_failed <= self.number


@dataclass(frozen=True)
class JobRequest:
    """What the user asked for.

    Attributes:
        inputs: Folders, patterns, tables, archives or images; empty with `failed_of`.
        model: Reference of a model.
        output: Folder or URI; new, or of the same job.
        column: Of locations or images in tables; None looks for the usual names.
        since: Outputs of earlier jobs whose inputs are left out.
        failed_of: Output of an earlier job whose failures are the inputs.
        output_format: Of the result files.
        top_k: Labels listed for each image.
        precision: Of the forward pass.
        compile_mode: Of the forward pass.
        seconds_per_image: Time limit of one decode.
        max_failures: Stops the job.
        workers: Fewest and most; None for one on each core or GPU.
        split: Whether decoding has actors of its own; None: beside GPUs.
        sql: Where the results go as well.
        urls: Which addresses images may be fetched from.
        within: Prefixes of the locations that may be read, also of those that tables name; empty
            for any.
        s3: How S3 is reached.
    """

    inputs: tuple[str, ...]
    model: str
    output: str
    column: str | None = None
    since: tuple[str, ...] = ()
    failed_of: str | None = None
    output_format: OutputFormat = "parquet"
    top_k: int = 5
    precision: Precision = "auto"
    compile_mode: CompileMode = "auto"
    seconds_per_image: float = 60.0
    max_failures: FailureLimit = field(default_factory=FailureLimit)
    workers: tuple[int, int] | None = None
    split: bool | None = None
    sql: SqlSink | None = None
    urls: UrlPolicy = field(default_factory=UrlPolicy)
    within: tuple[str, ...] = ()
    s3: storage.S3Options = field(default_factory=storage.S3Options)

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise InputError(f"--top-k must be 1 to {MAX_TOP_K}, not {self.top_k}.")
        if not 0 < self.seconds_per_image < math.inf:
            raise InputError(
                f"--image-timeout must be a number above 0, not {self.seconds_per_image}."
            )
        for place in self.within:
            storage.require_prefix(place)
        if bool(self.inputs) == bool(self.failed_of):
            raise InputError("Name inputs, or an earlier output with --failed-only, and not both.")

    @property
    def path_policy(self) -> storage.PathPolicy:
        """Which locations may be read."""
        return storage.PathPolicy(self.within or None)

    def work(self, model: LoadedModel) -> Work:
        """Return what decides the results."""
        package = model.package
        return Work(
            inputs=tuple(storage.absolute(location) for location in self.inputs),
            column=self.column,
            since=tuple(storage.absolute(output) for output in self.since),
            failed_of=storage.absolute(self.failed_of) if self.failed_of else None,
            url_hosts=self.urls.hosts,
            model=self.model,
            model_version=model.version,
            model_digest=package.digest,
            contract_digest=package.contract.digest,
            precision=self.precision,
            top_k=self.top_k,
            seconds_per_image=self.seconds_per_image,
            format=self.output_format,
        )
