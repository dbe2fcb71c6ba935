"""Admits requests: authenticates the caller, enforces its quota and limits the bytes in flight.

Whether callers need keys is determined once, when the service starts (`determine_access`), and is
never relaxed while it runs: every replica gets the same `Access`, including those that start later.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from eagleray.core.environment import is_loopback_address
from eagleray.core.errors import InputError
from eagleray.database.store import OpenDatabase
from eagleray.serving.callers.applications import Applications, key_digest
from eagleray.serving.problems import FullError, NotAllowedError, TooLargeError
from eagleray.serving.versions.routing import Snapshot

__all__ = [
    "ANONYMOUS",
    "Access",
    "ByteLimiter",
    "Quotas",
    "authenticate",
    "determine_access",
    "require_count",
]

_RETRY_AFTER = 0.5  # seconds

ANONYMOUS = ""
"""The application name of a caller on this machine that needs no key."""


@dataclass(frozen=True, slots=True)
class Access:
    """The access policy, fixed when the service starts. Its fields are plain JSON.

    Attributes:
        keyless: Whether only callers on this machine are admitted, and need no key.
        database: Identity of the database that the service started with.
        last_change: Number of the last change to any application when the service started.
    """

    keyless: bool
    database: str
    last_change: int

    def requires_keys(self, snapshot: Snapshot) -> bool:
        """Whether callers need keys now.

        A service that started without keys requires them as soon as an application is created, and
        still does after that application is deleted: the record of changes holds both.
        """
        changed = snapshot.last_change > self.last_change
        return not self.keyless or changed or bool(snapshot.applications)


def determine_access(database: OpenDatabase, *, host_is_loopback: bool) -> Access:
    """Determine whether the service that starts now requires keys.

    It does if there is any application. Otherwise it admits only callers on this machine, without
    keys.

    Args:
        database: The organisation's database.
        host_is_loopback: Whether the service listens on loopback only.

    Raises:
        InputError: If other machines would reach the service and there is no application.
        OutageError: If the database does not answer.
    """
    identity = database.read_identity()
    callers = Applications(database, actor="").read()
    if not callers.applications and not host_is_loopback:
        raise InputError(
            "Other machines would reach the service, but no application exists that could "
            "authenticate callers; create one with `eagleray apps create NAME`, or omit --host."
        )
    return Access(not callers.applications, identity, callers.last_change)


def authenticate(
    access: Access,
    snapshot: Snapshot,
    key: str | None,
    address: str | None,
    *,
    require_known: Callable[[], None] = lambda: None,
) -> str:
    """Return the application that a key belongs to; `ANONYMOUS` if callers need no key.

    Args:
        access: The access policy of the service.
        snapshot: The current snapshot, which holds the valid keys.
        key: The key as sent; None if the request has none.
        address: Network address of the peer, not one from a header; None if it is unknown.
        require_known: Raises if the snapshot is too old to tell which keys are valid.

    Raises:
        NotAllowedError: If the key is not valid, or is required and missing.
        OutageError: If `require_known` raises it.
    """
    if not access.requires_keys(snapshot):
        if address is not None and is_loopback_address(address):
            require_known()
            return ANONYMOUS
        raise NotAllowedError(
            "This service started without any application, so it admits only callers on its own "
            "machine; `eagleray apps create NAME` creates the first key."
        )
    if key is None:
        raise NotAllowedError("Send the application's key as `Authorization: Bearer KEY`.")
    require_known()
    found = snapshot.keys.get(key_digest(key))
    if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
        raise NotAllowedError(
            "This key is unknown, expired or revoked; ask the operator for a new one."
        )
    return found.application


def require_count(num_images: int, max_images: int) -> None:
    """Refuse a request with no image, or with more than one request may have.

    Raises:
        InputError: If there is none.
        TooLargeError: If there are too many.
    """
    if num_images == 0:
        raise InputError("The request holds no image.")
    if num_images > max_images:
        raise TooLargeError(
            f"The request holds {num_images} images, more than the {max_images} of one request; "
            "send several requests, or start a batch job."
        )


class Quotas:
    """Limits the images a second of each application, as a token bucket of one second's size.

    Args:
        share: Fraction of each quota that this replica grants.
        clock: Returns the time in seconds.
    """

    def __init__(self, *, share: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, snapshot: Snapshot, application: str, num_images: int) -> None:
        """Count images against a quota.

        Raises:
            FullError: If the quota is used up; nothing is counted then.
        """
        caller = snapshot.applications.get(application)
        if caller is None or caller.images_per_second is None:
            return
        rate = caller.images_per_second * self._share
        capacity = max(rate, 1.0)
        now = self._clock()
        tokens, counted = self._buckets.get(application, (capacity, now))
        tokens = min(capacity, tokens + (now - counted) * rate)
        # A request of more than a second's worth drives the bucket below zero, and later ones wait.
        if tokens < min(num_images, capacity):
            missing = min(num_images, capacity) - tokens
            raise FullError(
                f"The quota of {caller.name!r} is {caller.images_per_second:g} images a second",
                retry_after=missing / rate,
            )
        self._buckets[application] = (tokens - num_images, now)


class ByteLimiter:
    """Limits the bytes of all requests in progress, shared among applications.

    Bytes count as they arrive: what a request only declares takes no room. All requests of an
    application together may hold as many bytes as are left for others. So one application has at
    most half of the limit, two have a third each, and there is always room for the next. A single
    request may take all that is left.

    Args:
        max_bytes: Maximum bytes of all requests together.
        max_request_bytes: Maximum bytes of one request.
    """

    def __init__(self, max_bytes: int, max_request_bytes: int) -> None:
        self._max_bytes, self._max_request_bytes = max_bytes, max_request_bytes
        self.in_flight = 0
        """Number of bytes that have arrived of all requests in progress."""
        self._of_application: Counter[str] = Counter()

    def require_size(self, num_bytes: int) -> None:
        """Refuse a request with more bytes, declared or arrived, than one request may have.

        Raises:
            TooLargeError: If there are too many.
        """
        if num_bytes > self._max_request_bytes:
            raise TooLargeError(
                f"The request has more than {self._max_request_bytes:,} bytes; send fewer or "
                "smaller images."
            )

    @contextlib.contextmanager
    def hold(self, application: str) -> Iterator[Callable[[int], None]]:
        """Hold room for the bytes of a request while the block runs.

        Args:
            application: Name of the application that sends the request.

        Yields:
            A function to call with the number of bytes that have arrived so far. It raises
            `TooLargeError` if the request has too many, and `FullError` if there is no room for
            them, or none for this application.
        """
        held = 0

        def grow(total: int) -> None:
            nonlocal held
            self.require_size(total)
            more = total - held
            if more <= 0:
                return
            self._require_room(application, held, more)
            held += more
            self._count(application, more)

        try:
            yield grow
        finally:
            self._count(application, -held)

    def _require_room(self, application: str, held: int, more: int) -> None:
        left = self._max_bytes - self.in_flight - more
        if left < 0:
            raise FullError("Too many bytes are in flight", retry_after=_RETRY_AFTER)
        others = self._of_application[application] - held
        if others and others + held + more > left:
            raise FullError(
                "This application has as many bytes in flight as are left for others",
                retry_after=_RETRY_AFTER,
            )

    def _count(self, application: str, more: int) -> None:
        self.in_flight += more
        self._of_application[application] += more
        if not self._of_application[application]:
            del self._of_application[application]
