"""The locations that batch jobs of a caller may read and write."""

from __future__ import annotations

from collections.abc import Sequence

from eagleray.core.errors import InputError
from eagleray.core.names import require_application_name
from eagleray.io import storage
from eagleray.io.fetch import ImageSource, may_read
from eagleray.io.http import UrlPolicy
from eagleray.serving.config import ServiceConfig
from eagleray.serving.problems import ForbiddenError

__all__ = ["BatchPathPolicy"]

_FETCHED = ("http://", "https://")
_CALLER = "{application}"
_ANONYMOUS = "anonymous"  # stands for the caller if no application is configured


class BatchPathPolicy:
    """The locations that batch jobs of one caller may use.

    Args:
        config: Configuration of the service.
        application: Application of the caller; empty without one.
    """

    def __init__(self, config: ServiceConfig, application: str) -> None:
        name = application or _ANONYMOUS
        require_application_name(name)
        # Absolute, because a job has another working folder.
        self._outputs, self._inputs = (
            [storage.absolute(place.replace(_CALLER, name)) for place in places]
            for places in (config.batch_outputs, config.batch_inputs)
        )
        self._urls = UrlPolicy(hosts=config.allow_urls, private_networks=config.private_networks)

    @property
    def readable(self) -> list[str]:
        """Prefixes of the locations that a job may read."""
        return [*self._inputs, *self._outputs]

    def require_any(self) -> None:
        """Check that the service starts batch jobs.

        Raises:
            ForbiddenError: If it does not.
        """
        if not self._outputs:
            raise ForbiddenError(
                "This service starts no batch jobs; its operator enables them with --batch-outputs "
                "and --batch-inputs, the locations that they may write and read."
            )

    def require_output(self, location: str) -> None:
        """Check that a job may write to a location.

        Raises:
            ForbiddenError: If it may not.
        """
        if not storage.is_within(location, self._outputs):
            raise ForbiddenError(
                f"Batch jobs do not write to {location}; this service's --batch-outputs allows "
                f"{_listed(self._outputs)}."
            )

    def require_inputs(self, locations: Sequence[str]) -> None:
        """Check that a job may read locations and fetch URLs.

        Nothing is opened, so a refusal does not reveal what exists.

        Raises:
            ForbiddenError: If it may not.
        """
        policy = storage.PathPolicy(tuple(self.readable))
        for location in locations:
            if location.lower().startswith(_FETCHED):
                self._require_url(location)
            elif not may_read(ImageSource(location), policy):
                raise ForbiddenError(
                    f"Batch jobs do not read {location}; this service's --batch-inputs allows "
                    f"{_listed(self._inputs)}."
                )

    def _require_url(self, location: str) -> None:
        try:
            self._urls.target(location)
        except InputError as error:
            raise ForbiddenError(f"{location} is not fetched: {error}") from None


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places) or "nothing"
