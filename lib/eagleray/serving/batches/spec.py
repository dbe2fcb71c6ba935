"""What a caller asks for of a batch job, and the command line that does it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from eagleray.batch.plan import PredictWork
from eagleray.batch.spec import MAX_TOP_K
from eagleray.core.errors import InputError
from eagleray.core.types import OutputFormat
from eagleray.io import storage
from eagleray.io.http import UrlPolicy
from eagleray.registry.registry import ModelVersion
from eagleray.serving.config import ServiceConfig
from eagleray.sharded.failure_limit import FailureLimit

__all__ = ["BatchAsked"]

_MAX_LOCATIONS = 1000
_SECONDS_PER_IMAGE = 60.0


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("no line breaks and no control characters")
    return text


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _limit(text: str) -> str:
    try:
        FailureLimit.parse(text)
    except InputError:
        raise ValueError("write a share such as 1%, or a number") from None
    return text


Text = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_printable)]
Location = Annotated[Text, AfterValidator(storage.absolute)]
Locations = Annotated[
    tuple[Location, ...], BeforeValidator(_as_list, json_schema_input_type=str | list[str])
]


class BatchAsked(BaseModel):
    """A batch job as a caller describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Locations = Field(
        (),
        max_length=_MAX_LOCATIONS,
        description="Folders, patterns, tables, archives or images: one, or a list.",
    )
    output: Location = Field(description="Folder or URI; new, or of the same job.")
    model: Text = Field(description="A model's name, NAME@ALIAS or NAME/VERSION.")
    format: OutputFormat = Field("parquet", description="Of the result files.")
    column: Text | None = Field(
        None, description="Table column that holds the locations, or the images."
    )
    top_k: int = Field(5, ge=1, le=MAX_TOP_K, description="Labels listed for each image.")
    since: Locations = Field(
        (),
        max_length=_MAX_LOCATIONS,
        description="Earlier outputs; only what is new or changed since.",
    )
    failed_only: Location | None = Field(
        None, description="Earlier output whose failures are the inputs."
    )
    max_failures: Annotated[Text, AfterValidator(_limit)] = Field(
        "100%", description="Stop when more inputs than this fail: 1% or 200."
    )

    @model_validator(mode="after")
    def _one_source(self) -> BatchAsked:
        if bool(self.input) == bool(self.failed_only):
            raise ValueError("a batch has either input or failed_only")
        return self

    @property
    def earlier(self) -> tuple[str, ...]:
        """Outputs of earlier jobs that it reads."""
        return (*self.since, *filter(None, [self.failed_only]))

    @property
    def locations(self) -> tuple[str, ...]:
        """All that it names."""
        return (*self.input, *self.earlier, self.output)

    def work(self, model: ModelVersion, config: ServiceConfig, contract_digest: str) -> PredictWork:
        """Return what decides the results, to be compared with a plan that is there."""
        return PredictWork(
            inputs=self.input,
            column=self.column,
            since=self.since,
            failed_of=self.failed_only,
            url_hosts=UrlPolicy(hosts=config.allow_urls).hosts,
            model=model.reference,
            model_version=str(model.version),
            model_digest=model.digest,
            contract_digest=contract_digest,
            top_k=self.top_k,
            seconds_per_image=_SECONDS_PER_IMAGE,
            format=self.format,
        )

    def command(
        self, model: str, config: ServiceConfig, *, readable: Sequence[str], workers: int
    ) -> list[str]:
        """Return the words that do this job.

        What a caller wrote is never a word of its own that could be read as an option.

        Args:
            model: Reference of a version.
            config: Of the service.
            readable: Prefixes that the job may read from.
            workers: That it has.
        """
        options = {
            "model": model,
            "output": self.output,
            "format": self.format,
            "top-k": str(self.top_k),
            "max-failures": self.max_failures,
            "workers": str(workers),
        }
        if self.column is not None:
            options["column"] = self.column
        if self.failed_only is not None:
            options["failed-only"] = self.failed_only
        words = [f"--{name}={value}" for name, value in options.items()]
        words += [f"--since={output}" for output in self.since]
        words += [f"--allow-urls={host}" for host in config.allow_urls]
        words += [f"--within={place}" for place in readable]
        return [
            sys.executable,
            "-P",
            "-m",
            "eagleray.jobs.predict",
            "--json",
            *words,
            "--",
            *self.input,
        ]
