"""Registers the sources of inputs: for each kind of location, how it is recognised and listed.

    register_source(Source("catalog", is_catalog, open_catalog))

`is_catalog` says whether a location such as `catalog://flowers` is of this kind. `open_catalog`
returns an `OpenedSource`, whose tables name images that storage reads: local files, objects,
http(s) addresses, members of archives and cells of Parquet files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eagleray.core.extensions import Extensions
from eagleray.sources.listing import InputSpec, OpenedSource
from eagleray.sources.skipped import SkippedFiles

__all__ = ["Source", "register_source", "registered_sources"]


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of location that inputs come from.

    Attributes:
        name: Name of the kind.
        matches: Says whether a location is of this kind.
        open: Opens a location of this kind. It counts the files that are not inputs, and raises an
            `InputError` if the location is not there or cannot be read.
    """

    name: str
    matches: Callable[[str], bool]
    open: Callable[[str, InputSpec, SkippedFiles], OpenedSource]


_SOURCES: Extensions[Source] = Extensions("source")


def register_source(source: Source) -> None:
    """Make a kind of location known; it is asked before those that were registered earlier."""
    _SOURCES.register(source.name, source)


def registered_sources() -> tuple[Source, ...]:
    """Return all sources, in the order in which they are asked whether they match.

    Raises:
        InputError: If an extension cannot be imported.
    """
    return tuple(_SOURCES.get(name) for name in reversed(_SOURCES.names()))
