"""The body of a request for a batch job, and the specification of the job that it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import field_validator

from eagleray.batch.spec import BatchRequest, PredictSpec
from eagleray.io import storage
from eagleray.serving.config import ServiceConfig

__all__ = ["BatchBody"]

_MAX_LOCATIONS = 1000
_MAX_CHARACTERS = 4096  # of one text
_LOCATIONS = ("inputs", "output", "since", "failed_only")


class BatchBody(BatchRequest):
    """A batch job as a caller describes it; texts are bounded, and locations become absolute."""

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        texts = value if isinstance(value, tuple) else (value,)
        if len(texts) > _MAX_LOCATIONS:
            raise ValueError(f"at most {_MAX_LOCATIONS} locations; write them into a table")
        for text in texts:
            if isinstance(text, str) and not 0 < len(text) <= _MAX_CHARACTERS:
                raise ValueError(f"a text has 1 to {_MAX_CHARACTERS} characters")
            if isinstance(text, str) and not text.isprintable():
                raise ValueError("no line breaks and no control characters")
        return value

    @field_validator(*_LOCATIONS)
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(storage.absolute, value))
        return None if value is None else storage.absolute(value)

    @property
    def locations(self) -> tuple[str, ...]:
        """All locations that the caller names."""
        return (*self.inputs, *self.earlier, self.output)

    def job(
        self,
        model: str,
        config: ServiceConfig,
        *,
        readable: Sequence[str],
        workers: int | None = None,
    ) -> PredictSpec:
        """Return the specification of the job.

        Args:
            model: Reference of the version that the caller means.
            config: Configuration of the service.
            readable: Prefixes of the locations that the job may read.
            workers: Number of workers of the job.
        """
        return PredictSpec.model_validate(
            {
                **self.model_dump(),
                "model": model,
                "allow_urls": config.allow_urls,
                "private_networks": config.private_networks,
                "allow_path": readable,
                "workers": workers,
            }
        )
