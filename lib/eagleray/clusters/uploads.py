"""What of a command line lies on the submitter's disk, and how the cluster gets it.

Small inputs travel with the job, once for each content, in one archive that is unpacked in the
folder where the job runs. What is large, and every output, belongs in storage that the cluster
reaches.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from eagleray.core.errors import InputError

__all__ = ["INPUTS", "OUTPUTS", "LocalInputs", "find_local_inputs", "require_remote_outputs"]

INPUTS: Final = frozenset({"inputs", "data", "test_data", "model", "spec", "space", "kpi"}) | {
    *("split_file", "teacher"),
}
"""Parameters of commands that name what is read; a model may be a folder as well."""
OUTPUTS: Final = frozenset({"output", "since", "failed_only"})
"""Parameters of commands that name an output, of this job or of an earlier one."""

_MAX_BYTES: Final = 100 * 2**20
_MAX_FILES: Final = 20_000
_TABLES: Final = frozenset({".parquet", ".csv", ".jsonl", ".arrow", ".feather"})
_FOLDER: Final = "inputs"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same content makes the same archive


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
        """Return the archive and its name, which is made of its content.

        Raises:
            InputError: If a file cannot be read.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in sorted(self.files):
                try:
                    content = self.files[name].read_bytes()
                except OSError as error:
                    raise InputError(
                        f"{self.files[name]} cannot be read ({error.strerror}); it travels with "
                        "the job, so make it readable."
                    ) from None
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
        content = buffer.getvalue()
        return f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:32]}.zip", content


def find_local_inputs(parameters: Mapping[str, Any]) -> LocalInputs:
    """Return what the parameters of a command name on this disk.

    Args:
        parameters: Values by name, as the command line gives them.

    Raises:
        InputError: If they are too large, or of a kind that does not travel.
    """
    names: dict[str, str] = {}
    files: dict[str, Path] = {}
    for word in _texts(parameters, INPUTS):
        path = Path(word)
        if "://" in word or word in names or not path.exists():
            _require_no_pattern(word)
            continue
        if path.suffix.lower() in _TABLES and path.is_file():
            raise InputError(
                f"{word} is a table on this disk, and what it lists may be there too; put the "
                "images and the table into storage that the cluster reaches, and name them there."
            )
        names[word] = f"{_FOLDER}/{len(names)}/{path.resolve().name or 'folder'}"
        files |= {
            f"{names[word]}/{inner}" if inner else names[word]: file
            for inner, file in _files_below(path)
        }
        _require_small(files, word)
    return LocalInputs(names, files)


def require_remote_outputs(parameters: Mapping[str, Any]) -> None:
    """Refuse outputs on this disk, which the job would write on another machine's.

    Raises:
        InputError: If one is no URI.
    """
    for word in _texts(parameters, OUTPUTS):
        if "://" not in word:
            raise InputError(
                f"{word} would be on the disk of a machine of the cluster; name an output that "
                f"both reach, such as s3://BUCKET/{Path(word).name or 'results'}/."
            )


def _texts(parameters: Mapping[str, Any], names: frozenset[str]) -> Iterator[str]:
    for name in sorted(names & parameters.keys()):
        value = parameters[name]
        yield from [value] if isinstance(value, str) else filter(None, value or ())


def _files_below(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield "", path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file


def _require_small(files: Mapping[str, Path], word: str) -> None:
    size = sum(file.stat().st_size for file in files.values())
    if size > _MAX_BYTES or len(files) > _MAX_FILES:
        raise InputError(
            f"The inputs on this disk, with {word}, are {size / 1e6:,.0f} MB in {len(files):,} "
            f"files; up to {_MAX_BYTES / 1e6:,.0f} MB in {_MAX_FILES:,} files travel with a job. "
            f"Copy them once (aws s3 cp --recursive {word} s3://BUCKET/{Path(word).name}/), and "
            "name them there."
        )


def _require_no_pattern(word: str) -> None:
    if "://" not in word and any(character in word for character in "*?["):
        parent = Path(re.split(r"[*?[]", word, maxsplit=1)[0]).parent
        raise InputError(
            f"{word} is a pattern, which does not travel to a cluster; name the folder ({parent}), "
            "or a pattern in storage that the cluster reaches."
        )


def replace_words(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Return a command line in which local inputs have the names that they have on the cluster."""

    def replaced(word: str) -> str:
        if word in names:
            return names[word]
        option, equals, value = word.partition("=")
        if equals and option.startswith("--") and value in names:
            return f"{option}={names[value]}"
        return word

    return [replaced(word) for word in words]
