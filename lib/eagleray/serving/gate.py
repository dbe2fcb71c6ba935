"""Who is let in: the caller's key, its quota, and the bytes that are in flight."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from eagleray.serving.applications import key_digest
from eagleray.serving.problems import FullError, NotAllowedError, TooLargeError
from eagleray.serving.routing import Snapshot

__all__ = ["NOBODY", "ByteGate", "Quotas", "identify", "is_loopback"]

NOBODY = ""
"""The application of a caller on this machine, where no keys are configured."""


def identify(snapshot: Snapshot, key: str | None, client: str | None) -> str:
    """Return the application that a key belongs to.

    Where no application is configured, callers on this machine need no key, and no others are let
    in.

    Args:
        snapshot: With the keys that hold.
        key: As sent; None for none.
        client: Address that the request comes from.

    Raises:
        NotAllowedError: The key does not hold, or there is none and one is needed.
    """
    if not snapshot.applications:
        if client is not None and is_loopback(client):
            return NOBODY
        raise NotAllowedError(
            "No application is configured, so only callers on the service's own machine are let "
            "in; `eagleray apps create NAME` makes the first key."
        )
    if key is None:
        raise NotAllowedError("Send the application's key as `Authorization: Bearer KEY`.")
    found = snapshot.keys.get(key_digest(key))
    if found is None or (found.expires is not None and found.expires <= datetime.now(UTC)):
        raise NotAllowedError("This key is not, or no longer, one of an application.")
    return found.application


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


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
    """A limit on the bytes of all requests that are being answered.

    Args:
        most: Bytes.
        most_of_one: Bytes of one request.
    """

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self.most_of_one = most, most_of_one
        self.in_flight = 0

    @contextlib.contextmanager
    def hold(self, declared: int) -> Iterator[Callable[[int], None]]:
        """Hold room for a request for the time of the block.

        Args:
            declared: Bytes that it says it has.

        Yields:
            A function to call with the bytes that were really read so far.

        Raises:
            TooLargeError: One request has too many.
            FullError: All together have too many.
        """
        held = 0

        def grow(total: int) -> None:
            nonlocal held
            if total > self.most_of_one:
                raise TooLargeError(
                    f"The request has more than {self.most_of_one:,} bytes; send fewer or smaller "
                    "images."
                )
            more = total - held
            if more <= 0:
                return
            if self.in_flight + more > self._most:
                raise FullError("Too many bytes are in flight", retry_after=0.5)
            held += more
            self.in_flight += more

        try:
            grow(declared)
            yield grow
        finally:
            self.in_flight -= held
