"""Authenticates the callers of one replica by the keys that its watch has read last."""

from __future__ import annotations

from collections.abc import Callable

from eagleray.core.errors import DatabaseReplacedError, OutageError
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.serving.callers.admission import Access, authenticate, determine_access
from eagleray.serving.versions.routing import Snapshot
from eagleray.serving.watch import SnapshotWatch

__all__ = ["Authenticator"]

_KEYS_UNCHECKED = "Keys cannot be checked now; try again later."


class Authenticator:
    """Authenticates callers, and refuses them while it is unknown which keys are valid.

    Args:
        settings: The settings that name the organisation's database.
        access: The access policy; None determines it when the service starts, for a service of one
            process on loopback.
        max_snapshot_age: Seconds for which keys are accepted after the database was last read.
        snapshot: Returns the current snapshot, which holds the valid keys.
    """

    def __init__(
        self,
        settings: Settings,
        access: Access | None,
        *,
        max_snapshot_age: float,
        snapshot: Callable[[], Snapshot],
    ) -> None:
        self._settings, self._access = settings, access
        self._max_snapshot_age, self._snapshot = max_snapshot_age, snapshot
        self.watch: SnapshotWatch | None = None
        """What reads the keys; None until the service has started."""

    def determine_access(self) -> Access:
        """Return the access policy, which the database determines unless it was given.

        Raises:
            OutageError: If the database does not answer.
        """
        if self._access is None:
            self._access = determine_access(open_database(self._settings), host_is_loopback=True)
        return self._access

    @property
    def access(self) -> Access:
        """The access policy.

        Raises:
            RuntimeError: If the service has not started.
        """
        if self._access is None:
            raise RuntimeError("the service has not started")
        return self._access

    @property
    def requires_keys(self) -> bool:
        """Whether callers need keys now."""
        return self.access.requires_keys(self._snapshot())

    def authenticate(self, key: str | None, address: str | None) -> str:
        """Return the application of a caller; empty if callers need no key.

        Args:
            key: The key as sent; None if the request has none.
            address: Network address of the peer; None if it is unknown.

        Raises:
            NotAllowedError: If the caller is not admitted.
            OutageError: If keys cannot be checked now.
        """
        return authenticate(
            self.access, self._snapshot(), key, address, require_known=self._require_known_keys
        )

    def _require_known_keys(self) -> None:
        """Refuse if it is unknown which keys are valid.

        Raises:
            OutageError: If the database has not answered for too long, or was replaced.
        """
        fault = self.fault()
        if fault is not None:
            raise fault

    def fault(self) -> OutageError | None:
        """Return why keys cannot be checked; None if they can."""
        if self.watch is None:
            return None
        fault, age = self.watch.database.fault, self.watch.database.age
        if isinstance(fault, DatabaseReplacedError):
            return DatabaseReplacedError(str(fault), public=_KEYS_UNCHECKED)
        if self.requires_keys and age > self._max_snapshot_age:
            return OutageError(
                f"The database has not answered for {age:.0f} s, more than "
                f"--max-snapshot-age-s allows, so keys are not accepted ({fault}).",
                public=_KEYS_UNCHECKED,
            )
        return None
