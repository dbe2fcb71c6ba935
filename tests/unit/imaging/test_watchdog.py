"""The watchdog: a worker that decodes too long, or holds too much, ends and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from eagleray.imaging.watchdog import (
    EXIT_GIL_HELD,
    EXIT_TOO_MUCH_MEMORY,
    EXIT_TOO_SLOW,
    MEMORY_FOR_AN_IMAGE,
    node_memory,
    worker_memory_budget,
)
from tests.support.killers import killer_environment

ROOT = Path(__file__).parents[3]
MIB = 2**20

WORKER = """
import ctypes, mmap, psutil, sys, threading, time
from eagleray.imaging.watchdog import Watchdog
from eagleray.imaging import decode, named_contract
from tests.support.killers import killer_jpeg

FAST = named_contract("fast")
used = psutil.Process().memory_info().rss

def work(watchdog, uri, do):
    with watchdog.decoding(uri):
        do()

"""


def run_worker(body: str) -> subprocess.CompletedProcess[str]:
    """Run a worker's code in a process of its own, under the hook that lets images kill."""
    return subprocess.run(
        [sys.executable, "-c", WORKER + body],
        env={**os.environ, **killer_environment()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def only_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if not line.startswith("test hook:")]
    return line


# --- a decode that takes too long ---


def test_a_decode_that_never_returns_ends_the_worker() -> None:
    worker = run_worker("""
watchdog = Watchdog(seconds=0.5, memory_bytes=2**40)
for number in range(100):
    work(watchdog, f"quick-{number}", lambda: None)
others = threading.Thread(target=work, args=(watchdog, "later", lambda: time.sleep(60)))
with watchdog.decoding("s3://photos/with\\nnewline.jpg"):
    others.start()
    decode(killer_jpeg("HANG"), FAST)
""")
    assert worker.returncode == EXIT_TOO_SLOW
    line = only_line(worker.stderr)
    assert line.startswith("watchdog: process ")
    assert r"decoding 's3://photos/with\nnewline.jpg' has taken 0." in line
    assert line.endswith("s, the limit is 0.5 s")


def test_a_decode_that_never_returns_in_another_thread_ends_the_worker() -> None:
    worker = run_worker("""
watchdog = Watchdog(seconds=0.5, memory_bytes=2**40)
work(watchdog, "quick", lambda: decode(killer_jpeg("CHATTER"), FAST))
hung = lambda: decode(killer_jpeg("HANG"), FAST)
threading.Thread(target=work, args=(watchdog, "hung", hung)).start()
while True:
    work(watchdog, "quick", lambda: None)
""")
    assert worker.returncode == EXIT_TOO_SLOW
    assert "decoding 'hung' has taken" in only_line(worker.stderr)


@pytest.mark.parametrize(
    "hang", ['decode(killer_jpeg("GIL"), FAST)', "ctypes.PyDLL(None).pause()"], ids=["image", "c"]
)
def test_a_decoder_that_holds_the_gil_for_ever_ends_the_worker(hang: str) -> None:
    worker = run_worker(f"""
watchdog = Watchdog(seconds=0.5, memory_bytes=2**40, gil_seconds=1.5)
work(watchdog, "quick", lambda: None)
with watchdog.decoding("hung"):
    {hang}
""")
    assert worker.returncode == EXIT_GIL_HELD
    assert worker.stderr.count("Timeout (0:00:01.500000)!") == 1
    assert 'File "<string>", line ' in worker.stderr  # where it hangs


# --- a worker that holds too much ---


def test_an_image_that_takes_memory_without_end_ends_the_worker() -> None:
    worker = run_worker("""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # should the watchdog sleep
watchdog = Watchdog(seconds=60, memory_bytes=used + 2**29)
with watchdog.decoding("greedy"):
    decode(killer_jpeg("MEMORY"), FAST)
""")
    assert worker.returncode == EXIT_TOO_MUCH_MEMORY
    line = only_line(worker.stderr)
    assert "MiB of memory, the limit is " in line
    assert line.endswith("MiB, while decoding 'greedy'")


def test_many_images_in_flight_make_one_short_line() -> None:
    worker = run_worker("""
import contextlib
watchdog = Watchdog(seconds=60, memory_bytes=used + 2**28)
with contextlib.ExitStack() as in_flight:
    for number in range(50):
        in_flight.enter_context(watchdog.decoding(f"image-{number}"))
    much = b"x" * 2**29
    time.sleep(60)
""")
    assert worker.returncode == EXIT_TOO_MUCH_MEMORY
    assert only_line(worker.stderr).endswith(
        "'image-0', 'image-1', 'image-2', 'image-3' and 46 more"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is shared")
def test_memory_shared_with_others_does_not_count() -> None:
    worker = run_worker("""
watchdog = Watchdog(seconds=60, memory_bytes=used + 100 * 2**20)
store = mmap.mmap(-1, 400 * 2**20)  # shared, as Ray's object store is
store.write(b"x" * (50 * 2**20))
store[:: 4096] = b"x" * (len(store) // 4096)
watchdog._check_memory()
print(psutil.Process().memory_info().rss > used + 300 * 2**20)
""")
    assert (worker.returncode, worker.stdout.strip()) == (0, "True")


# --- a healthy worker ---


def test_a_healthy_worker_is_left_alone() -> None:
    worker = run_worker("""
from concurrent.futures import ThreadPoolExecutor
with Watchdog(seconds=5, memory_bytes=2**40) as watchdog, ThreadPoolExecutor(8) as pool:
    for number in range(20_000):
        pool.submit(work, watchdog, f"image-{number}", lambda: None)
print(len(watchdog._in_flight), [thread.name for thread in threading.enumerate()])
""")
    assert (worker.returncode, worker.stderr) == (0, "")
    assert worker.stdout.strip() == "0 ['MainThread']"


def test_a_decode_that_raises_is_no_longer_in_flight() -> None:
    worker = run_worker("""
watchdog = Watchdog(seconds=5, memory_bytes=2**40)
try:
    work(watchdog, "bad", lambda: 1 / 0)
except ZeroDivisionError:
    print(len(watchdog._in_flight))
""")
    assert (worker.returncode, worker.stdout.strip()) == (0, "0")


def test_a_stopped_watchdog_ends_nothing() -> None:
    worker = run_worker("""
watchdog = Watchdog(seconds=0.1, memory_bytes=2**40, gil_seconds=0.5)
watchdog.stop()
with watchdog.decoding("slow"):
    ctypes.PyDLL(None).sleep(1)
print("done")
""")
    assert (worker.returncode, worker.stdout.strip(), worker.stderr) == (0, "done", "")


# --- budgets ---

TOTAL = psutil.virtual_memory().total


def test_workers_share_what_the_node_has() -> None:
    assert worker_memory_budget(1) == int(0.6 * node_memory())
    held = psutil.Process().memory_info().rss
    assert MEMORY_FOR_AN_IMAGE < worker_memory_budget(10_000) <= MEMORY_FOR_AN_IMAGE + 2 * held


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, TOTAL),
        ("0::/\n", {"memory.max": "max"}, TOTAL),
        ("0::/\n", {"memory.max": "300000000"}, 300_000_000),
        ("0::/a/b\n", {"a/memory.max": "200000000", "a/b/memory.max": "max"}, 200_000_000),
        ("0::/a/b\n", {"a/memory.max": "max", "a/b/memory.max": "100000000"}, 100_000_000),
        ("0::/a\n", {"a/memory.max": str(2 * TOTAL)}, TOTAL),
        (
            "5:cpu,memory:/job\n0::/\n",
            {"memory/memory.limit_in_bytes": str(2**63 - 4096),
             "memory/job/memory.limit_in_bytes": "400000000"},
            400_000_000,
        ),
        # In a container the path may be the host's, which is not mounted here.
        ("4:memory:/docker/0a1b\n", {"memory/memory.limit_in_bytes": "500000000"}, 500_000_000),
        ("0::/docker/a:b\n", {"memory.max": "600000000"}, 600_000_000),
    ],
)  # fmt: skip
def test_a_container_limits_the_node(
    tmp_path: Path, membership: str, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert node_memory(tmp_path) == expected
