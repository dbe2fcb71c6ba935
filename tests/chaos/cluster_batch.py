"""Batch jobs on a cluster of hosts whose clients, heads, workers and links are killed."""

from __future__ import annotations

import functools
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable

import boto3
import pyarrow as pa

from cluster.hosts.host import Host, wait_until
from eagleray.core.job_state import JobState
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.scheduling.records import JobRecords
from tests.chaos.scenario_result import ScenarioResult
from tests.support.hosted import BUCKET, MODEL, PROFILE, Hosted
from tests.support.images import encode, photo

__all__ = ["Batches", "cut_links", "end_workers", "kill_clients", "kill_heads"]

_NUM_DIFFERENT = 6
_SECONDS_TO_END = 300.0
_SECONDS_TO_RECORD = 30.0
_MAX_KILLS_OF_AN_OUTPUT = 4
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Batches:
    """Batch jobs over one list of images, and how an undisturbed one ends.

    Args:
        hosted: The cluster.
        rng: Chooses the moments.
        num_images: Number of images in the list; each takes a core a tenth of a second.
    """

    def __init__(self, hosted: Hosted, rng: random.Random, num_images: int) -> None:
        self.hosted, self.rng, self._num_images = hosted, rng, num_images
        self._num_outputs = 0
        self._seconds = 0.0
        self._reference: pa.Table | None = None

    @property
    def reference(self) -> pa.Table:
        """Rows of an undisturbed job."""
        if self._reference is None:
            self._run_reference()
        assert self._reference is not None
        return self._reference

    @property
    def seconds(self) -> float:
        """Duration of an undisturbed job, from its submission to its end."""
        assert self.reference is not None
        return self._seconds

    def new_output(self) -> str:
        self._num_outputs += 1
        return f"{BUCKET}/out/{self._num_outputs:04d}"

    def words(self, output: str) -> list[str]:
        """Return the command line of a job."""
        words = ["predict", f"{BUCKET}/list.csv", "--column", "image", *MODEL]
        return [*words, "--output", output, "--cluster", PROFILE]

    def submit(self, output: str) -> str:
        """Submit a job and return its name."""
        said = self.hosted.eagleray(*self.words(output), "--detach").stderr
        return said.split("Job ")[1].split()[0]

    @functools.cached_property
    def records(self) -> JobRecords:
        """The records of jobs in the cluster's database."""
        url = self.hosted.cluster.head.environment["EAGLERAY_DATABASE_URL"]
        settings = Settings(database_url=url)
        return JobRecords(open_database(settings), settings)

    def wait_for_record(self, job: str) -> float:
        """Wait until the record of a job whose head was killed says so; return the seconds.

        Raises:
            TimeoutError: If the record still says that the job runs.
        """
        started = time.monotonic()
        wait_until(
            lambda: self.records.get(job).state != JobState.RUNNING,
            _SECONDS_TO_RECORD,
            f"the record of {job} still says that it runs",
        )
        return time.monotonic() - started

    def state(self, job: str) -> str:
        """Return the state of a job as Ray says it; "" while it does not respond."""
        try:
            return str(self.hosted.cluster.get(f"/api/jobs/{job}")["status"])
        except RuntimeError:
            return ""

    def wait_for_shards(self, output: str) -> set[str]:
        """Wait until shards of a job have results, and return them; none if it has committed."""
        while not (finished := self.finished_shards(output)) and not self.has_committed(output):
            time.sleep(0.1)
        return finished

    def has_committed(self, output: str) -> bool:
        return bool(self.hosted.s3.exists(f"{output.removeprefix('s3://')}/_manifest.json"))

    def wait(self, job: str, seconds: float = _SECONDS_TO_END) -> str:
        """Wait until a job has ended, and return its state."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in _ENDED:
            if time.monotonic() > deadline:
                return f"still {state or 'unknown'} after {seconds:g} s"
            time.sleep(0.5)
        return state

    def wait_at_random(self, output: str) -> bool:
        """Wait for a random moment of a job; return whether it is still at work then."""
        time.sleep(self.rng.uniform(0.05, 0.95) * self.seconds)
        return not self.has_committed(output)

    def finished_shards(self, output: str) -> set[str]:
        """Return the keys of the shards that have their result."""
        prefix = f"{output.removeprefix('s3://')}/_eagleray/shards/"
        self.hosted.s3.invalidate_cache()
        return {str(key).partition("/")[2] for key in self.hosted.s3.glob(f"{prefix}*.parquet")}

    def times_written(self, output: str) -> Counter[str]:
        """Return how often the result of each shard was written."""
        client = boto3.client(
            "s3",
            endpoint_url=self.hosted.store.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        prefix = f"{output.partition('data/')[2]}/_eagleray/shards/"
        pages = client.get_paginator("list_object_versions").paginate(Bucket="data", Prefix=prefix)
        return Counter(one["Key"] for page in pages for one in page.get("Versions", ()))

    def check(self, result: ScenarioResult, output: str, finished: Counter[str]) -> None:
        """Compare an output with an undisturbed one, and see whether finished work was repeated.

        Args:
            result: Receives the findings.
            output: The output.
            finished: Shards that had their result when something was killed.
        """
        result.outputs += 1
        if not self.has_committed(output):
            result.faults.append(f"{output} was not committed")
            return
        found = self.hosted.rows(output)
        numbers, wanted = found["row"].to_pylist(), self.reference["row"].to_pylist()
        result.rows += len(numbers)
        result.lost += len(set(wanted) - set(numbers))
        result.doubled += len(numbers) - len(set(numbers))
        result.different += not found.equals(self.reference)
        written = self.times_written(output)
        result.counts["shards"] += len(written)
        result.counts["shards written twice"] += sum(times - 1 for times in written.values())
        repeated = [key for key in finished if written[key] > 1]
        result.counts["finished shards repeated"] += len(repeated)
        if repeated:
            result.faults.append(f"{output}: finished shards were repeated: {repeated[:5]}")

    def _run_reference(self) -> None:
        s3 = self.hosted.s3
        s3.make_bucket_versioned("data", True)
        names = []
        for seed in range(_NUM_DIFFERENT):
            jpeg = encode(photo(4000, 3000, seed=seed, noise=20), "jpeg", quality=80)
            s3.pipe_file(f"data/large/{seed}.jpg", jpeg)
            names.append(f"{BUCKET}/large/{seed}.jpg")
        s3.pipe_file("data/large/broken.jpg", b"no image")
        names.append(f"{BUCKET}/large/broken.jpg")
        lines = [names[number % len(names)] for number in range(self._num_images)]
        s3.pipe_file("data/list.csv", "\n".join(["image", *lines, ""]).encode())
        output = f"{BUCKET}/out/reference"
        started = time.monotonic()
        job = self.submit(output)
        state = self.wait(job)
        self._seconds = time.monotonic() - started
        assert state == "SUCCEEDED", (state, self.hosted.cluster.get(f"/api/jobs/{job}/logs"))
        self._reference = self.hosted.rows(output)


def kill_clients(batches: Batches, result: ScenarioResult, num_kills: int) -> None:
    """Kill the client of attached jobs at random moments, and attach from another machine."""
    cluster = batches.hosted.cluster
    other = cluster.add_client("other")
    other.environment |= cluster.client.environment
    cluster.add_profile(PROFILE, other)
    result.add_note(f"an undisturbed job takes {batches.seconds:.0f} s")
    while result.kills < num_kills:
        output = batches.new_output()
        attached = cluster.client.start("eagleray", *batches.words(output))
        job = _name_of(attached.text)
        time.sleep(batches.rng.uniform(0.0, 0.8) * batches.seconds)
        attached.send_signal(signal.SIGKILL)
        attached.wait()
        result.add_kill("the client")
        said = other.run(
            "eagleray", "jobs", "attach", job, "--cluster", PROFILE, check=False, seconds=300
        )
        if said.returncode:
            result.faults.append(f"attach ended with {said.returncode}: {said.stderr[-300:]}")
        if f"{batches.reference.num_rows:,} images" not in said.stderr:
            result.faults.append(f"the log of {job} is not whole: {said.stderr[:300]}")
        batches.check(result, output, Counter())


def kill_heads(batches: Batches, result: ScenarioResult, num_kills: int) -> None:
    """Kill the head at random moments of jobs, start it again, and submit the job again."""
    cluster = batches.hosted.cluster
    result.add_note(f"an undisturbed job takes {batches.seconds:.0f} s")
    back, nodes, recorded = [], [], []
    records = batches.records  # opening the database takes seconds
    while result.kills < num_kills:
        output, finished = batches.new_output(), Counter[str]()
        job = batches.submit(output)
        for _ in range(min(_MAX_KILLS_OF_AN_OUTPUT, num_kills - result.kills)):
            if not batches.wait_at_random(output):
                break
            cluster.head.kill()
            finished.update(batches.finished_shards(output))
            result.add_kill("the head")
            started = time.monotonic()
            cluster.start_head()
            back.append(time.monotonic() - started)
            result.counts[f"old job in Ray: {batches.state(job) or 'unknown'}"] += 1
            recorded.append(batches.wait_for_record(job))
            result.counts[f"old job in its record: {records.get(job).state}"] += 1
            nodes.append(_restart_lost_workers(batches, result) + time.monotonic() - started)
            job = batches.submit(output)
            result.resumes += 1
        state = batches.wait(job)
        if state != "SUCCEEDED":
            result.faults.append(f"{output}: the last run is {state}")
        batches.check(result, output, finished)
    result.add_note(
        f"the head responds {statistics.median(back):.1f} s after it is started again (at most "
        f"{max(back):.1f}), and all nodes are there after {statistics.median(nodes):.1f} s (at "
        f"most {max(nodes):.1f}); the record of the old job says that it is lost "
        f"{max(recorded):.1f} s after that at most"
    )


def end_workers(batches: Batches, result: ScenarioResult, num_kills: int, *, drain: bool) -> None:
    """End a worker in the middle of jobs, by SIGTERM or by a cut of its power."""
    cluster = batches.hosted.cluster
    seconds, drained = [], []
    result.add_note(f"an undisturbed job takes {batches.seconds:.0f} s")
    while result.kills < num_kills:
        output = batches.new_output()
        worker = batches.rng.choice(cluster.workers)
        started = time.monotonic()
        job = batches.submit(output)
        finished = batches.wait_for_shards(output)
        if drain:
            drained.append(cluster.drain(worker))
        worker.kill()
        result.add_kill(worker.name)
        state = batches.wait(job)
        seconds.append(time.monotonic() - started)
        if state != "SUCCEEDED":
            result.faults.append(f"{output}: the job is {state}")
        batches.check(result, output, Counter(finished))
        cluster.start_worker(worker)
        cluster.wait_for_nodes(1 + len(cluster.workers))
    result.add_note(f"jobs took {statistics.median(seconds):.0f} s (at most {max(seconds):.0f})")
    if drained:
        result.add_note(f"a node drained in {statistics.median(drained):.0f} s")


def cut_links(batches: Batches, result: ScenarioResult, num_kills: int) -> None:
    """Pull the cable of a worker for 5 s, for 60 s, and for good."""
    cluster = batches.hosted.cluster
    result.add_note(f"an undisturbed job takes {batches.seconds:.0f} s")
    for seconds in (5.0, 60.0, float("inf")):
        output = batches.new_output()
        worker = batches.rng.choice(cluster.workers)
        started = time.monotonic()
        job = batches.submit(output)
        finished = batches.wait_for_shards(output)
        worker.disconnect()
        result.add_kill(f"the link of {worker.name}")
        if seconds < 1000:
            worker.cut(seconds)
        state = batches.wait(job)
        took = time.monotonic() - started
        if state != "SUCCEEDED":
            result.faults.append(f"{output}: the job is {state}")
        batches.check(result, output, Counter(finished))
        duration = f"{seconds:g} s" if seconds < 1000 else "good"
        result.add_note(f"a link cut for {duration}: the job took {took:.0f} s")
        time.sleep(max(0.0, started + seconds + 15 - time.monotonic()) if seconds < 1000 else 0)
        result.add_note(f"{cluster.num_nodes() - 1} workers are left")
        worker.kill()
        cluster.start_worker(worker)
        cluster.wait_for_nodes(1 + len(cluster.workers))


def _restart_lost_workers(batches: Batches, result: ScenarioResult) -> float:
    """Wait for the workers to join the new head, and start those again that do not.

    Returns:
        Zero; the time passes.
    """
    cluster = batches.hosted.cluster
    try:
        cluster.wait_for_nodes(1 + len(cluster.workers), 30)
    except TimeoutError:
        lost = [worker for worker in cluster.workers if not _has_raylet(worker)]
        result.counts["workers that had to be started again"] += len(lost)
        for worker in lost:
            worker.kill()
            cluster.start_worker(worker)
        cluster.wait_for_nodes(1 + len(cluster.workers))
    return 0.0


def _has_raylet(worker: Host) -> bool:
    return any("raylet/raylet" in " ".join(one.cmdline()) for one in worker.processes())


def _name_of(text: Callable[[], str]) -> str:
    """Wait until a command says the name of its job, and return it."""
    deadline = time.monotonic() + 60
    while not (found := re.search(r"^Job (\S+)", text(), re.MULTILINE)):
        assert time.monotonic() < deadline, text()[-500:]
        time.sleep(0.1)
    return found[1]
