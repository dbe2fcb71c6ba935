"""Where outputs are: a folder on disk, or a prefix in a bucket."""

from __future__ import annotations

from dataclasses import dataclass, field

from eagleray.io import storage


@dataclass(frozen=True)
class Place:
    """A folder or bucket that outputs are made in.

    Attributes:
        name: `disk` or `S3`.
        root: Location.
        s3: How it is reached.
    """

    name: str
    root: str
    s3: storage.S3Options = field(default_factory=storage.S3Options)

    @property
    def on_disk(self) -> bool:
        return not storage.is_remote(self.root)

    def output(self, scenario: str, number: int) -> str:
        """The location of one output; each is used once."""
        return storage.join(self.root, "out", f"{scenario}-{number:04d}")
