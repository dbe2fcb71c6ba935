"""Who is let in: the caller's key, its quota, and the bytes that are in flight.

Whether callers need keys is settled once, when the service starts (`settle_access`), and is never
loosened while it runs: every replica is handed the same `Access`, those that start later too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from eagleray.core.errors import InputError
from eagleray.database.store import OpenDatabase
from eagleray.serving.applications import Applications, key_digest
from eagleray.serving.problems import FullError, NotAllowedError, TooLargeError
from eagleray.serving.routing import Snapshot

__all__ = ["NOBODY", "Access", "ByteGate", "Quotas", "identify", "is_loopback", "settle_access"]

_RETRY_AFTER = 0.5  # seconds

NOBODY = ""
"""The application of a caller on this machine, where the service takes callers without keys."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in, as it was settled when the service started. Its fields are plain JSON.

    Attributes:
        keyless: Whether callers on this machine need no key, and no others are let in.
        database: Identity of the database that the service started with.
        last_change: Number of the last change of any application at that moment.
    """

    keyless: bool
    database: str
    last_change: int

    def demands_keys(self, snapshot: Snapshot) -> bool:
        """Whether callers need keys now.

        A service that started without keys demands them as soon as an application is made, and
        goes on to when that is deleted: the record of changes keeps both.
        """
        changed = snapshot.last_change > self.last_change
        return not self.keyless or changed or bool(snapshot.applications)


def settle_access(database: OpenDatabase, *, host_is_loopback: bool) -> Access:
    """Settle whether the service that starts now demands keys.

    It does where there are applications. Where there are none it takes callers on this machine
    alone, without keys.

    Args:
        database: Opened.
        host_is_loopback: Whether the service listens to this machine alone.

    Raises:
        InputError: Others would reach the service, and there is no application.
        OutageError: The database does not answer.
    """
    identity = database.read_identity()
    callers = Applications(database, who="").read()
    if not callers.applications and not host_is_loopback:
        raise InputError(
            "The service would be reached from other machines, and no application is configured "
            "that callers could be known by; make one with `eagleray apps create NAME`, or leave "
            "--host out."
        )
    return Access(not callers.applications, identity, callers.last_change)


def identify(
    access: Access,
    snapshot: Snapshot,
    key: str | None,
    address: str | None,
    *,
    require_known: Callable[[], None] = lambda: None,
) -> str:
    """Return the application that a key belongs to; `NOBODY` where callers need no key.

    Args:
        access: As it was settled when the service started.
        snapshot: With the keys that hold.
        key: As sent; None for none.
        address: Of the peer itself, whatever a header says of it; None where it is not known.
        require_known: Refuses where the snapshot cannot tell any more who is let in.

    Raises:
        NotAllowedError: The key does not hold, or there is none and one is needed.
        OutageError: As `require_known` says.
    """
    if not access.demands_keys(snapshot):
        if address is not None and is_loopback(address):
            require_known()
            return NOBODY
        raise NotAllowedError(
            "This service started without any application, so only callers on its own machine are "
            "let in; `eagleray apps create NAME` makes the first key."
        )
    if key is None:
        raise NotAllowedError("Send the application's key as `Authorization: Bearer KEY`.")
    require_known()
    found = snapshot.keys.get(key_digest(key))
    if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
        raise NotAllowedError("This key is not, or no longer, one of an application.")
    return found.application


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine, an IPv4 address in IPv6's form included."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


class Quotas:
    """Images a second for each application, a second's worth of them at once.

    Args:
        share: Of each quota, for this replica.
        clock: Seconds.
    """

    def __init__(self, *, share: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._clock = share, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, snapshot: Snapshot, application: str, num_images: int) -> None:
        """Count images against a quota.

        Raises:
            FullError: It is used up; nothing is counted.
        """
        caller = snapshot.applications.get(application)
        if caller is None or caller.images_per_second is None:
            return
        rate = caller.images_per_second * self._share
        most = max(rate, 1.0)
        now = self._clock()
        tokens, counted = self._buckets.get(application, (most, now))
        tokens = min(most, tokens + (now - counted) * rate)
        # Whoever sends more than a second's worth at once goes into debt, and pays by waiting.
        if tokens < min(num_images, most):
            missing = min(num_images, most) - tokens
            raise FullError(
                f"The quota of {caller.name!r} is {caller.images_per_second:g} images a second",
                retry_after=missing / rate,
            )
        self._buckets[application] = (tokens - num_images, now)


class ByteGate:
    """A limit on the bytes of all requests that are being answered, shared among applications.

    Bytes count as they arrive: what a request only declares holds no room. All requests of an
    application together may hold as many bytes as are left for others. So one application has at
    most half of all, two have a third each, and there is always something left for the next. A
    single request may have what is left, however much that is.

    Args:
        most: Bytes of all requests.
        most_of_one: Bytes of one request.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self.in_flight = 0
        """Bytes that have arrived of all requests."""
        self._of_application: Counter[str] = Counter()

    def require_size(self, num_bytes: int) -> None:
        """Refuse a request of more bytes than one may have, declared or arrived.

        Raises:
            TooLargeError: They are too many.
        """
        if num_bytes > self._most_of_one:
            raise TooLargeError(
                f"The request has more than {self._most_of_one:,} bytes; send fewer or smaller "
                "images."
            )

    @contextlib.contextmanager
    def hold(self, application: str) -> Iterator[Callable[[int], None]]:
        """Hold room for what arrives of a request, for the time of the block.

        Args:
            application: That sends it.

        Yields:
            A function to call with the number of bytes that have arrived so far. It raises
            `TooLargeError` when the request has too many, and `FullError` when there is no room for
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
        left = self._most - self.in_flight - more
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
