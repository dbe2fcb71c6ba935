"""Which shards were begun, in the key-value store of Ray's head, where it outlives every worker."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ShardJournal"]

_NAMESPACE = b"eagleray"


@dataclass(frozen=True, slots=True)
class ShardJournal:
    """Remembers which shards were begun: one that is begun again has lost its worker.

    An actor could hold this as well; it would be one more process, of seventy megabytes.

    Attributes:
        run: Tells this run's shards from those of others on the cluster.
    """

    run: str

    def begin(self, shard: int) -> int:
        """Note a beginning, and return how many there were before."""
        from ray.experimental.internal_kv import _internal_kv_put

        times = 0
        # Says whether the key was there already; of two that ask at once, one hears no.
        while _internal_kv_put(self._key(f"{shard}-{times}"), b"", False, namespace=_NAMESPACE):
            times += 1
        return times

    def forget(self) -> None:
        """Remove what this run has noted."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self._key(""), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, name: str) -> str:
        return f"shards-begun-{self.run}-{name}"
