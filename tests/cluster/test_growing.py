"""Jobs on a cluster that is at zero: it grows to what they ask for, and shrinks to zero again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from eagleray.models.package import write_package
from tests.support.growing_cluster import CPU_NODES, GPU_NODES, GrowingCluster, growing_cluster
from tests.support.images import encode, photo
from tests.support.models import small_package

NUM_IMAGES = 600
_SECONDS_TO_REFUSE = 60.0  # on a busy machine; a job that waits for nodes waits without end


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrowingCluster]:
    folder = tmp_path_factory.mktemp("growing")
    with growing_cluster(folder, {**CPU_NODES, **GPU_NODES}) as running:
        yield running


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the words of a prediction without its output."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "images").mkdir()
    for number in range(NUM_IMAGES):
        image = encode(photo(40, 40, seed=number), "jpeg")
        (folder / "images" / f"{number:03d}.jpg").write_bytes(image)
    write_package(small_package(), str(folder / "model"))
    return ["predict", str(folder / "images"), "--model", str(folder / "model")]


def test_a_cluster_at_zero_grows_for_a_prediction_and_shrinks_again(
    cluster: GrowingCluster, words: list[str], tmp_path: Path
) -> None:
    assert cluster.look() == 0
    out = str(tmp_path / "out")
    job = [*words, "--output", out, "--cluster", cluster.address, "--workers", "1..3"]
    ended = cluster.run(["-m", "eagleray", *job, "--device", "cpu"])
    assert ended.returncode == 0, ended.stdout
    assert "waiting for 3 of 3 workers, one on each core: the cluster grows" in ended.stdout
    table = pyarrow.parquet.read_table(out)
    assert table.column("row").to_pylist() == list(range(NUM_IMAGES))
    # The autoscaler may add a node for a request of Ray Data, and ends it again.
    assert 3 <= max(size for _, size in cluster.sizes) <= 4
    cluster.await_size(0)
    print("CPU nodes over time (seconds, nodes):", cluster.sizes)


def test_a_cluster_at_zero_grows_for_gpus_and_shrinks_again(cluster: GrowingCluster) -> None:
    cluster.await_size(0)
    del cluster.sizes[:]
    job = ["-m", "tests.support.idle_job", "--cluster", cluster.address, "--device", "gpu"]
    ended = cluster.run([*job, "--shards", "60"])
    assert ended.returncode == 0, ended.stdout
    assert "num_workers=3" in ended.stdout
    assert "60 shards done" in ended.stdout
    # Ray Data asks for a node by itself while all are busy, which here is a CPU node.
    assert 3 <= max(size for _, size in cluster.sizes) <= 4
    cluster.await_size(0)
    print("GPU nodes over time (seconds, nodes):", cluster.sizes)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            ["--workers", "9", "--device", "gpu"],
            "--workers 9: the cluster has 3 GPUs and does not grow to more, which take 3 workers",
        ),
        (["--workers", "13..16", "--device", "cpu"], "the cluster has 6 CPU cores and does not"),
    ],
)
def test_what_a_cluster_never_has_is_refused_at_once(
    cluster: GrowingCluster, words: list[str], tmp_path: Path, asked: list[str], sentence: str
) -> None:
    job = [*words, "--output", str(tmp_path / "out"), "--cluster", cluster.address, *asked]
    started = time.monotonic()
    ended = cluster.run(["-m", "eagleray", *job])
    assert ended.returncode == 2, ended.stdout
    assert sentence in ended.stdout.replace("\n", " ")
    assert "Traceback" not in ended.stdout
    assert time.monotonic() - started < _SECONDS_TO_REFUSE
    assert not (tmp_path / "out").exists()
