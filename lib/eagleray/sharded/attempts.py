"""Which shards were begun, in the key-value store of Ray's head, where it outlives every worker."""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.ray_private import delete_keys, put_key_if_absent

__all__ = ["ShardJournal"]

_NAMESPACE = b"eagleray"


@dataclass(frozen=True, slots=True)
class ShardJournal:
    """Remembers which shards were begun: one that is begun again has lost its worker.

    Attributes:
        run: Tells this run's shards from those of others on the cluster.
    """

    run: str

    def begin(self, shard: int) -> int:
        """Note a beginning, and return how many there were before."""
        times = 0
        while not put_key_if_absent(self._key(f"{shard}-{times}"), _NAMESPACE):
            times += 1
        return times

    def forget(self) -> None:
        """Remove what this run has noted."""
        delete_keys(self._key(""), _NAMESPACE)

    def _key(self, name: str) -> str:
        return f"shards-begun-{self.run}-{name}"
