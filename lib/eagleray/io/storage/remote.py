"""Opens the fsspec file system of a URI, with this process's time-outs, retries and S3 options."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from eagleray.core.errors import InputError
from eagleray.io.storage.locations import require_scheme
from eagleray.io.storage.retry import RetryPolicy, retry_remote

__all__ = ["Remote", "S3Options", "open_remote", "use_s3", "using_s3"]

_S3_SCHEMES = frozenset({"s3", "s3a"})

_CONNECT_SECONDS = 5
_READ_SECONDS = 20
# Up to 32 threads of a worker read at the same time; the default of s3fs is 10 connections.
_MAX_CONNECTIONS = 64
_CLIENT_ATTEMPTS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Options:
    """How S3 is reached; what is None or False is left to the environment.

    Attributes:
        endpoint: Base URL of an S3-compatible server, `http://…` or `https://…`.
        region: Region of the buckets.
        profile: Name of a profile in the AWS configuration files.
        anonymous: Whether requests are sent unsigned, for public buckets.
        requester_pays: Whether the caller agrees to pay for reads from requester-pays buckets.

    Raises:
        InputError: If the options contradict each other or the endpoint is not a URL.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    requester_pays: bool = False

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise InputError(
                f"S3 endpoint {self.endpoint!r} is not a URL; write http://… or https://…."
            )
        if self.anonymous and self.profile is not None:
            raise InputError(
                f"S3 profile {self.profile!r} signs requests and anonymous access does not; give "
                "one of the two."
            )


def use_s3(options: S3Options) -> None:
    """Make the options the defaults of this process; each worker process calls this itself.

    They apply to everything in the process that opens S3 through fsspec. Options that are not set
    stay as they are.
    """
    import fsspec

    chosen: dict[str, Any] = {}
    if options.endpoint is not None:
        chosen["endpoint_url"] = options.endpoint
    if options.region is not None:
        known = fsspec.config.conf.get("s3", {}).get("client_kwargs", {})
        chosen["client_kwargs"] = {**known, "region_name": options.region}
    if options.profile is not None:
        chosen["profile"] = options.profile
    if options.anonymous:
        chosen["anon"] = True
    if options.requester_pays:
        chosen["requester_pays"] = True
    if chosen:
        fsspec.config.conf["s3"] = {**fsspec.config.conf.get("s3", {}), **chosen}


@contextlib.contextmanager
def using_s3(options: S3Options) -> Iterator[None]:
    """Make the options the defaults of this process until the end of the `with` block."""
    import fsspec

    before = fsspec.config.conf.get("s3")
    use_s3(options)
    try:
        yield
    finally:
        fsspec.config.conf.pop("s3", None)
        if before is not None:
            fsspec.config.conf["s3"] = before


@dataclass(frozen=True, slots=True)
class Remote:
    """A URI with its open file system.

    Attributes:
        location: The URI as it was given.
        filesystem: The fsspec file system, shared by all threads.
        path: The location as the file system spells it.
        is_s3: Whether the file system is s3fs, through which single S3 requests can be sent.
        retries: How calls are retried; None for the default.
    """

    location: str
    filesystem: Any
    path: str
    is_s3: bool
    retries: RetryPolicy | None = None

    @property
    def name(self) -> str:
        """The argument of functions for one file; s3fs takes the URI with any trailing slash."""
        return self.location if self.is_s3 else self.path

    def call(self, call: Callable[[], T]) -> T:
        """Call the storage, and retry after transient errors."""
        return retry_remote(self.filesystem, call, self.retries)

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send one S3 request (`list_objects_v2`, …), and retry after transient errors."""
        filesystem = self.filesystem
        payer = {"RequestPayer": "requester"} if filesystem.requester_pays else {}
        response: dict[str, Any] = self.call(
            lambda: filesystem.call_s3(method, **payer, **arguments)
        )
        return response

    def bucket_and_key(self) -> tuple[str, str]:
        """Return the S3 bucket and the key, character by character.

        Raises:
            InputError: If the URI names no bucket.
        """
        rest = self.location.split("://", 1)[1].lstrip("/")
        if rest.startswith("arn:"):
            bucket, key, _ = self.filesystem.split_path(self.location)
        else:
            bucket, _, key = rest.partition("/")
        if not bucket:
            raise InputError(f"{self.location} names no bucket; write s3://BUCKET/….")
        return bucket, key

    def bucket_and_prefix(self) -> tuple[str, str]:
        """Return the S3 bucket and the prefix of the keys in the folder."""
        bucket, key = self.bucket_and_key()
        return bucket, key if not key or key.endswith("/") else f"{key}/"


def open_remote(location: str, *, many_calls: bool = False) -> Remote:
    """Open the file system of a URI; no request is sent yet.

    Args:
        location: A URI of a supported scheme.
        many_calls: Whether the operation sends many requests; the S3 client then retries each of
            them a few times before the whole operation is retried.

    Raises:
        InputError: If the scheme is not supported, or a package that fsspec needs is missing.
    """
    import fsspec

    require_scheme(location)
    scheme = location.split("://", 1)[0]
    try:
        filesystem_class = fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise InputError(f"Cannot open {location}: {error}.") from error
    options = filesystem_class._get_kwargs_from_urls(location)
    path = filesystem_class._strip_protocol(location)
    is_s3 = scheme in _S3_SCHEMES and filesystem_class.__module__.startswith("s3fs")
    if is_s3:
        filesystem = filesystem_class(**options, **_s3_arguments(many_calls=many_calls))
        filesystem.retries = 1
    else:
        filesystem = filesystem_class(**options)
        filesystem.invalidate_cache()  # another process may have written since it last listed
    return Remote(location, filesystem, path, is_s3)


def _s3_arguments(*, many_calls: bool) -> dict[str, Any]:
    """Return arguments of s3fs that the user's own configuration overrides."""
    import fsspec

    attempts = _CLIENT_ATTEMPTS if many_calls else 1
    defaults = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "max_pool_connections": _MAX_CONNECTIONS,
        "retries": {"mode": "legacy", "total_max_attempts": attempts},
        # Keeps these clients apart from others in the process: they parse key pages differently.
        "user_agent_extra": "eagleray",
    }
    configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**defaults, **configured}, "use_listings_cache": False}
