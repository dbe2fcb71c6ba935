"""A Ray cluster on hosts of their own, and a client outside of it that has only the wheel."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from cluster.hosts import Hosts, RayCluster, Store
from cluster.hosts.ray_cluster import Storage
from eagleray.core.settings import Settings
from eagleray.registry.registry import Registry
from tests.support.images import encode
from tests.support.installed import build_wheel, install
from tests.support.training import write_stripes

__all__ = ["BUCKET", "MODEL", "Hosted", "hosted_cluster"]

BUCKET = "s3://data"
PROFILE = "hosts"
MODEL = ("--model", "random:lenet5", "--precision", "float32", "--engine", "eager")


@dataclass(frozen=True)
class Hosted:
    """A running cluster.

    Attributes:
        hosts: All hosts.
        cluster: The cluster.
        store: The servers that lie outside of it.
        s3: The bucket, as this machine reaches it.
    """

    hosts: Hosts
    cluster: RayCluster
    store: Store
    s3: s3fs.S3FileSystem

    @contextlib.contextmanager
    def registry(self) -> Iterator[Registry]:
        """The registry of the cluster, as this machine reaches it."""
        variables = self.cluster.head.environment
        before = dict(os.environ)
        os.environ |= {name: value for name, value in variables.items() if name.startswith("AWS_")}
        try:
            yield Registry(
                Settings(
                    tracking_uri=variables["EAGLERAY_TRACKING_URI"],
                    database_url=variables["EAGLERAY_DATABASE_URL"],
                    artifact_root=variables["EAGLERAY_ARTIFACT_ROOT"],
                )
            )
        finally:
            os.environ.clear()
            os.environ |= before

    def eagleray(
        self, *words: str, check: bool = True, seconds: float = 240.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the client."""
        return self.cluster.client.run("eagleray", *words, check=check, seconds=seconds)

    def put_photos(self, count: int, *, side: int = 24, name: str = "photos") -> str:
        """Write small images and a broken one; return their location."""
        generator = np.random.default_rng(0)
        for number in range(count):
            pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
            self.s3.pipe_file(f"data/{name}/{number:05d}.png", encode(pixels))
        self.s3.pipe_file(f"data/{name}/broken.png", b"no image")
        return f"{BUCKET}/{name}/"

    def put_stripes(self, folder: Path) -> str:
        """Write labelled images of two classes; return their location."""
        write_stripes(folder / "stripes")
        self.s3.put(str(folder / "stripes"), "data/stripes", recursive=True)
        return f"{BUCKET}/stripes/"

    def rows(self, output: str) -> pa.Table:
        """Return the committed rows of a job, in their order, without the time that each took."""
        files = sorted(self.s3.glob(f"{output.removeprefix('s3://')}/part-*.parquet"))
        tables = []
        for name in files:
            with self.s3.open(name) as file:
                tables.append(pq.read_table(file))
        return pa.concat_tables(tables).drop_columns(["milliseconds"])


@contextlib.contextmanager
def hosted_cluster(
    *,
    num_workers: int = 3,
    storage: Storage = "memory",
    environment: Mapping[str, str] | None = None,
    keep: bool = False,
) -> Iterator[Hosted]:
    """Start a cluster, its servers and its client, until the end of the block.

    Args:
        num_workers: Number of workers.
        storage: Where Ray's control store keeps its state.
        environment: Variables of the nodes.
        keep: Keep the disks and logs of the hosts.
    """
    shared = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    with Hosts(shared, keep=keep) as hosts:
        store = Store(hosts)
        access = store.start_s3("data")
        hosts.environment |= access
        settings = store.start_postgres() | {
            "EAGLERAY_RUNS_ROOT": f"{BUCKET}/runs",
            "EAGLERAY_ARTIFACT_ROOT": f"{BUCKET}/models",
        }
        if storage == "redis":
            store.start_redis()
        cluster = RayCluster(
            hosts,
            store,
            num_workers=num_workers,
            storage=storage,
            environment={**settings, **(environment or {})},
        )
        installed = install(build_wheel(hosts.folder / "dist"), hosts.folder)
        path = f"{installed.folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        cluster.client.environment |= {"PATH": path, "PYTHONPATH": ""}
        cluster.start()
        cluster.add_profile(PROFILE)
        s3 = s3fs.S3FileSystem(
            key="test", secret="test", endpoint_url=store.endpoint, skip_instance_cache=True
        )
        yield Hosted(hosts, cluster, store, s3)
