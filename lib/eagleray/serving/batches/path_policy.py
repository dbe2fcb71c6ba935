"""Which locations a caller may have a batch job read and write: none that no setting names."""

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
_NOBODY = "nobody"  # in the place of a caller where no application is configured


class BatchPathPolicy:
    """The locations of one caller.

    Args:
        config: Of the service.
        application: Of the caller.
    """

    def __init__(self, config: ServiceConfig, application: str) -> None:
        name = application or _NOBODY
        require_application_name(name)
        # Absolute here: a job has another working folder.
        self._outputs, self._inputs = (
            [storage.absolute(place.replace(_CALLER, name)) for place in places]
            for places in (config.batch_outputs, config.batch_inputs)
        )
        self._urls = UrlPolicy(hosts=config.allow_urls, private_networks=config.private_networks)

    @property
    def readable(self) -> list[str]:
        """Prefixes that a job may read from."""
        return [*self._inputs, *self._outputs]

    def require_any(self) -> None:
        """Refuse where no batch jobs are meant to be.

        Raises:
            ForbiddenError: They are not.
        """
        if not self._outputs:
            raise ForbiddenError(
                "This service starts no batch jobs; its operator allows them with --batch-outputs "
                "and --batch-inputs, which name where they may write and read."
            )

    def require_output(self, location: str) -> None:
        """Refuse an output elsewhere.

        Raises:
            ForbiddenError: It is.
        """
        if not storage.is_within(location, self._outputs):
            raise ForbiddenError(
                f"Batch jobs do not write to {location}; this service's --batch-outputs allows "
                f"{_listed(self._outputs)}."
            )

    def require_inputs(self, locations: Sequence[str]) -> None:
        """Refuse inputs from elsewhere, and URLs that the service does not fetch.

        Nothing is opened for it, so the refusal says nothing of what is there.

        Raises:
            ForbiddenError: One of them is.
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
