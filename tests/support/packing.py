"""Builders for tests of packing: files, requests, and jobs that are packed without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from eagleray.cli.console import Console
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.io.fetch import ImageReader, ImageSource
from eagleray.packing.job import PackJob, PackShards, PackSummary, open_pack, run_pack
from eagleray.packing.receipt import PackedShard
from eagleray.packing.spec import PackSpec
from eagleray.packing.worker import PackContext, pack_shard
from eagleray.sources import LISTING_SCHEMA, InputSpec, open_inputs
from tests.support.images import encode, photo

FORMATS = pytest.mark.parametrize("file_format", ["parquet", "webdataset"])
QUIET = Console(json_output=True)
ONE_CORE = Cluster(num_cpus=1, num_gpus=0, embedded=True)
MIB = 2**20
JPEG = encode(photo(40, 30), "jpeg")
PNG = encode(photo(20, 10), "png")
PNG_HEADER = PNG[:33]


def write_files(folder: Path, files: Mapping[str, bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(folder)


def numbered(count: int, *, size: int = 1000) -> dict[str, bytes]:
    """Make files of one size whose contents differ; by their headers they are PNGs."""
    generator = np.random.default_rng(0)
    rest = size - len(PNG_HEADER)
    return {f"{index:03d}.jpg": PNG_HEADER + generator.bytes(rest) for index in range(count)}


def request(source: str, target: Path | str, **overrides: Any) -> PackSpec:
    spec = PackSpec.make({"inputs": (source,), "output": str(target)})
    return spec.model_copy(update=overrides)  # tests pack into smaller files than users may


def opened(asked: PackSpec) -> PackJob:
    return open_pack(asked, Settings(), QUIET)


def run(job: PackJob, pack_shards: PackShards) -> PackSummary:
    return run_pack(job, lambda: ONE_CORE, QUIET, pack_shards=pack_shards)


def here(shards: Iterable[int], context: PackContext, *_: object) -> Iterator[PackedShard]:
    """Do what the workers do, in this process."""
    for shard in shards:
        yield pack_shard(context, shard)


def nobody(shards: Iterable[int], context: PackContext, *_: object) -> Iterator[PackedShard]:
    raise AssertionError(f"shards {shards} are packed again")


def pack(source: str, target: Path | str, **overrides: Any) -> PackSummary:
    return run(opened(request(source, target, **overrides)), here)


def read_back(location: Path | str) -> list[bytes]:
    """Read every image as a job does that is given this input."""
    reader = ImageReader(128 * MIB)
    return [reader.read(source) for source in sources(location)]


def sources(location: Path | str) -> list[ImageSource]:
    names = ("uri", "size", "packing", "container", "offset")
    tables = open_inputs(InputSpec((str(location),))).tables
    return [
        ImageSource(*(record[name] for name in names))
        for table in tables
        for record in table.select(range(len(LISTING_SCHEMA))).to_pylist()
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[p_]*.[pt]*"))}


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return content


def in_memory(table: Path, files: Mapping[str, bytes]) -> str:
    """Put files where no listing tells their size, and list them in a table."""
    for name, content in files.items():
        fsspec.filesystem("memory").pipe_file(f"/{table.stem}/{name}", content)
    lines = ["uri", *(f"memory://{table.stem}/{name}" for name in files)]
    table.write_text("\n".join(lines))
    return str(table)
