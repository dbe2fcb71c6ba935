"""Which shards were begun; a module that imports nothing, because an actor of its own loads it."""

from __future__ import annotations

__all__ = ["ShardJournal"]


class ShardJournal:
    """Remembers which shards were begun: one that is begun again has lost its worker."""

    def __init__(self) -> None:
        self._times_begun: dict[int, int] = {}

    def begin(self, shard: int) -> int:
        """Note a beginning, and return how many there were before."""
        before = self._times_begun.get(shard, 0)
        self._times_begun[shard] = before + 1
        return before
