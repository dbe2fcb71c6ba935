"""What of a command line lies on the submitter's disk, and how the cluster gets it.

Small inputs travel with the job, once for each content, in one archive that is unpacked in the
folder where the job runs. What is large, and every output, belongs in storage that the cluster
reaches.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from eagleray.clusters.remote_jobs import RemoteCommand
from eagleray.core.errors import InputError
from eagleray.core.spec import Names
from eagleray.scheduling.packages import INPUTS, MODELS, make_package

__all__ = [
    "LocalInputs",
    "copy_command",
    "find_local_inputs",
    "is_local",
    "require_remote_outputs",
]

_MAX_BYTES: Final = 100 * 2**20
_MAX_FILES: Final = 20_000
_TABLES: Final = frozenset({".parquet", ".csv", ".jsonl", ".arrow", ".feather"})


@dataclass(frozen=True, slots=True)
class LocalInputs:
    """The local files that a job brings along.

    Attributes:
        names: Place in the archive by the word of the command line.
        files: Files by their place in the archive.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    def archive(self) -> tuple[str, bytes]:
        """Return the name of the archive and its content.

        Raises:
            InputError: If a file cannot be read.
        """
        return make_package(self.files)


def is_local(word: str) -> bool:
    """Whether a location can only be on this disk, or on none."""
    return "://" not in word or word.lower().startswith("file://")


def copy_command(word: str) -> str:
    """Return the command that copies a file or folder of this disk to object storage."""
    recursive = " --recursive" if Path(word).is_dir() else ""
    slash = "/" if recursive else ""
    return f"aws s3 cp{recursive} {shlex.quote(word)} s3://BUCKET/{Path(word).name}{slash}"


def find_local_inputs(command: RemoteCommand) -> LocalInputs:
    """Return what the parameters of a command name on this disk.

    Args:
        command: The command.

    Raises:
        InputError: If they are too large, or of a kind that does not travel.
    """
    names: dict[str, str] = {}
    files: dict[str, Path] = {}
    num_bytes = 0
    kinds = {Names.INPUT: INPUTS, Names.MODEL: MODELS}
    for word, place in ((word, kinds[kind]) for kind in kinds for word in command.texts(kind)):
        path = Path(word)
        if "://" in word or word in names or not path.exists():
            _require_no_pattern(word)
            continue
        if path.suffix.lower() in _TABLES and path.is_file():
            raise InputError(
                f"{word} is a table on this disk, and what it lists may be there too; put the "
                "images and the table into storage that the cluster reaches, and name them there."
            )
        names[word] = f"{place}/{len(names)}/{path.resolve().name or 'folder'}"
        for inner, file in _files_below(path):
            files[f"{names[word]}/{inner}" if inner else names[word]] = file
            num_bytes += file.stat().st_size
            if num_bytes > _MAX_BYTES or len(files) > _MAX_FILES:  # before the rest is listed
                raise _too_large(word)
    return LocalInputs(names, files)


def require_remote_outputs(command: RemoteCommand) -> None:
    """Refuse outputs on this disk, which the job would write on another machine's.

    Raises:
        InputError: If one is no URI of storage.
    """
    for word in command.texts(Names.OUTPUT, Names.EARLIER_OUTPUT):
        if is_local(word):
            raise InputError(
                f"{word} would be on the disk of a machine of the cluster; name an output that "
                f"both reach, such as s3://BUCKET/{Path(word).name or 'results'}/."
            )


def _files_below(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield "", path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.is_file():
                yield file.relative_to(path).as_posix(), file


def _too_large(word: str) -> InputError:
    return InputError(
        f"The inputs on this disk, with {word}, are more than the {_MAX_BYTES / 1e6:,.0f} MB or "
        f"the {_MAX_FILES:,} files that travel with a job. Copy them once ({copy_command(word)}), "
        "and name them there."
    )


def _require_no_pattern(word: str) -> None:
    if "://" not in word and any(character in word for character in "*?["):
        parent = Path(re.split(r"[*?[]", word, maxsplit=1)[0]).parent
        raise InputError(
            f"{word} is a pattern, which does not travel to a cluster; name the folder ({parent}), "
            "or a pattern in storage that the cluster reaches."
        )
