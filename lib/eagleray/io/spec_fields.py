"""Fields of specifications that say how images are reached: S3, URLs and allowed locations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, model_validator

from eagleray.core.settings import Settings
from eagleray.core.spec import AsList, Spec, Texts, as_value_error, spec_field

if TYPE_CHECKING:  # the options of a command are listed without what takes long to import
    from eagleray.io import storage
    from eagleray.io.http import UrlPolicy

__all__ = ["S3_PANEL", "SOURCES_PANEL", "PathPrefix", "ReadFields", "S3Fields", "SourceFields"]

S3_PANEL = "S3"
SOURCES_PANEL = "Image sources"


def _path_prefix(text: str) -> str:
    from eagleray.io import storage

    with as_value_error():
        storage.require_prefix(text)
    return text


PathPrefix = Annotated[str, AfterValidator(_path_prefix)]
"""A folder, or a prefix of an object store."""


class S3Fields(Spec):
    """How S3 is reached; fields that are left out follow the settings `EAGLERAY_S3_*`."""

    s3_endpoint: str | None = spec_field(
        None, S3_PANEL, "Address of an S3 server that is not Amazon's."
    )
    s3_region: str | None = spec_field(None, S3_PANEL, "Region of the buckets.")
    s3_profile: str | None = spec_field(None, S3_PANEL, "Profile in the AWS credentials file.")
    s3_anonymous: bool | None = spec_field(None, S3_PANEL, "Sign no requests.")
    s3_requester_pays: bool | None = spec_field(None, S3_PANEL, "Pay for what is read.")

    @model_validator(mode="after")
    def _s3_is_consistent(self) -> Self:
        with as_value_error():
            _ = self.s3
        return self

    @property
    def s3(self) -> storage.S3Options:
        """The S3 options of this specification."""
        from eagleray.io import storage

        return storage.S3Options(
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            profile=self.s3_profile,
            anonymous=bool(self.s3_anonymous),
            requester_pays=bool(self.s3_requester_pays),
        )

    def with_settings(self, settings: Settings) -> Self:
        """Return the specification with what it leaves out taken from the settings.

        Raises:
            InputError: If the specification and the settings contradict each other.
        """
        found = {
            name: getattr(settings, name)
            for name in S3Fields.model_fields
            if getattr(self, name) is None
        }
        return self.make({**self.model_dump(), **found}, name=self.name_of)


class ReadFields(S3Fields):
    """How S3 is reached, and which locations may be read at all."""

    allow_path: Annotated[tuple[PathPrefix, ...], AsList] = spec_field(
        (),
        SOURCES_PANEL,
        "Prefix of the locations that may be read, also of those that a table names; default: any.",
    )

    @property
    def path_policy(self) -> storage.PathPolicy:
        """Which locations may be read."""
        from eagleray.io import storage

        return storage.PathPolicy(self.allow_path or None)


class SourceFields(ReadFields):
    """How the images of a batch or packing job are reached."""

    allow_urls: Texts = spec_field(
        (), SOURCES_PANEL, "Host that images may be fetched from by http(s); default: none."
    )
    private_networks: Texts | None = spec_field(
        None,
        SOURCES_PANEL,
        "Network that such hosts may be in although it is not the public internet; default: "
        "EAGLERAY_URL_PRIVATE_NETWORKS.",
    )

    @model_validator(mode="after")
    def _urls_are_valid(self) -> Self:
        with as_value_error():
            _ = self.urls
        return self

    @property
    def urls(self) -> UrlPolicy:
        """The URL policy of this specification."""
        from eagleray.io.http import UrlPolicy

        return UrlPolicy(hosts=self.allow_urls, private_networks=self.private_networks or ())

    def with_settings(self, settings: Settings) -> Self:
        """Return the specification with what it leaves out taken from the settings.

        Raises:
            InputError: If the specification and the settings contradict each other.
        """
        filled = super().with_settings(settings)
        if filled.private_networks is not None:
            return filled
        networks = [text.strip() for text in settings.url_private_networks.split(",")]
        found = {"private_networks": list(filter(None, networks))}
        return self.make({**filled.model_dump(), **found}, name=self.name_of)
