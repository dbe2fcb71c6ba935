"""The fsspec file system behind a URI, with the time-outs and the S3 options of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from eagleray.core.errors import InputError
from eagleray.io.storage.faults import patiently
from eagleray.io.storage.locations import require_scheme

__all__ = ["Remote", "S3Options", "open_remote", "use_s3", "using_s3"]

_S3_SCHEMES = frozenset({"s3", "s3a"})

_CONNECT_SECONDS = 5
_READ_SECONDS = 20
# Up to 32 threads of a worker read at once, and s3fs's own default lets 10 of them through.
_CONNECTIONS = 64
_ATTEMPTS_BELOW = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where S3 is and who asks; what is None or False is left to the environment.

    Attributes:
        endpoint: Base URL of a server other than Amazon's, `http://…` or `https://…`.
        region: Of the buckets.
        profile: In the AWS configuration files.
        anonymous: Sign nothing: for public buckets.
        requester_pays: Agree to pay for what is read from buckets that ask for it.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    requester_pays: bool = False

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise InputError(
                f"S3 endpoint {self.endpoint!r} is no URL; write http://… or https://…."
            )
        if self.anonymous and self.profile is not None:
            raise InputError(
                f"S3 profile {self.profile!r} signs requests and anonymous access does not; give "
                "one of the two."
            )


def use_s3(options: S3Options) -> None:
    """Make the options the defaults of this process; a worker process calls it for itself.

    Whatever in this process opens S3 through fsspec follows. Options that are not given stay as
    they are.
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
    """A URI that is open for calls.

    Attributes:
        location: The URI as it was given.
        filesystem: The fsspec file system, shared by all threads.
        path: What the file system calls it.
        is_s3: Whether this is s3fs, which gives us single requests.
    """

    location: str
    filesystem: Any
    path: str
    is_s3: bool

    @property
    def name(self) -> str:
        """What functions for one file take: s3fs the URI itself, whose last slash counts."""
        return self.location if self.is_s3 else self.path

    def patiently(self, call: Callable[[], T]) -> T:
        """Call the storage, again when a fault is of a kind that passes."""
        return patiently(self.filesystem, call)

    def call_s3(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send one S3 request (`list_objects_v2`, …), again when a fault is of a passing kind."""
        filesystem = self.filesystem
        payer = {"RequestPayer": "requester"} if filesystem.requester_pays else {}
        answer: dict[str, Any] = self.patiently(
            lambda: filesystem.call_s3(method, **payer, **arguments)
        )
        return answer

    def bucket_and_key(self) -> tuple[str, str]:
        """The S3 bucket and the key, letter by letter.

        Raises:
            InputError: No bucket is named.
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
        """The S3 bucket and what the keys in the folder begin with."""
        bucket, key = self.bucket_and_key()
        return bucket, key if not key or key.endswith("/") else f"{key}/"


def open_remote(location: str, *, many_calls: bool = False) -> Remote:
    """Open the file system of a URI; nothing is asked yet.

    Args:
        location: A URI of a supported scheme.
        many_calls: For an operation of s3fs that sends many requests: let the client below repeat
            each of them a few times, before all are repeated.

    Raises:
        InputError: The scheme is not supported, or what fsspec needs for it is not installed.
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
    """Arguments of s3fs on top of the process's own; what the user configured wins."""
    import fsspec

    attempts = _ATTEMPTS_BELOW if many_calls else 1
    ours = {
        "connect_timeout": _CONNECT_SECONDS,
        "read_timeout": _READ_SECONDS,
        "max_pool_connections": _CONNECTIONS,
        "retries": {"mode": "legacy", "total_max_attempts": attempts},
        # Makes these clients ours alone: pages of keys are parsed by us.
        "user_agent_extra": "eagleray",
    }
    users = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {**ours, **users}, "use_listings_cache": False}
