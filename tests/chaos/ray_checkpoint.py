"""Attacks Ray Data's own checkpoints in the same way, for comparison.

Rows are made, given a value and written with `DataContext.checkpoint_config`. The job
speaks to storage through a file system that passes everything on to Arrow's, and that can kill the
driver together with the worker that makes a call, or that worker alone, before or after the call.
After a kill the same program is run again until it ends by itself.

Arrow's S3 file system moves a file by copying and then deleting it, inside of one call; here that
is done in two, so that a kill between them can be placed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

from tests.chaos.places import Place
from tests.chaos.readers import Readers, arrow_filesystem, polling
from tests.chaos.scenario_result import ScenarioResult
from tests.chaos.workspace import Workspace, recording
from tests.support.processes import Child, end_orphans, family, in_child, titled

NUM_ROWS, NUM_BLOCKS = 400, 8
_AT_WORK = ("Write", "ray::Read", "ray::_clean", "ray::convert")
_MAX_RUNS = 4
_SECONDS_TO_START = 120.0
_SECONDS_UNTIL_IDLE = 30.0


class Event(NamedTuple):
    """A moment before or after a call: the function, its target and the moment."""

    call: str
    target: str
    moment: str


@dataclass(frozen=True)
class Attack:
    """A kill at a moment of a job.

    Attributes:
        event: Moment of the kill.
        nth: Occurrence of the moment, from 1.
        driver_too: Whether the driver is killed with the worker that makes the call.
    """

    event: Event
    nth: int
    driver_too: bool

    def __str__(self) -> str:
        whom = "driver" if self.driver_too else "worker"
        return f"{whom} killed {self.event.moment} {self.event.call} of {self.event.target}"


def attack_ray_data(
    workspace: Workspace, place: Place, *, workers_too: bool = True
) -> ScenarioResult:
    """Kill jobs that Ray Data checkpoints, and count the rows of their outputs.

    Args:
        workspace: Workspace of the test.
        place: Storage of inputs, checkpoints and outputs.
        workers_too: Whether single workers are killed as well.
    """
    address = workspace.folder / f"ray-{place.name}"
    keeper = Child(lambda: _keep_ray(address))

    def output_of(number: int) -> str:
        return place.output("ray-checkpoint", number)

    with recording("Ray Data's checkpoints", place) as result:
        result.ours = False
        try:
            _await(address)
            environment = Environment(workspace, place, address.read_text(), keeper.pid)
            with polling(result, place, output_of, NUM_ROWS) as readers:
                readers.watch(0)
                events = environment.run(output_of(0), None)[1]
                for number, attack in enumerate(_attacks(events, workers_too), start=1):
                    readers.watch(number)
                    _attack(result, environment, output_of(number), attack, readers)
                _repeat(result, environment, output_of(0))
        finally:
            started = family(keeper.pid)
            keeper.kill()
            keeper.wait()
            end_orphans(started)
    result.reads = result.partial = 0  # there is no commit that a reader could follow
    return result


def _attacks(events: Counter[Event], workers_too: bool) -> list[Attack]:
    """Attack every kind of moment once, in the middle of the job."""
    attacks = [Attack(event, (count + 1) // 2, True) for event, count in sorted(events.items())]
    if workers_too:
        attacks += [
            Attack(event, (count + 1) // 2, False)
            for event, count in sorted(events.items())
            if count > 1 and event.call in {"open_output_stream", "move", "copy", "delete_file"}
        ]
    return attacks


def _attack(
    result: ScenarioResult, environment: Environment, output: str, attack: Attack, readers: Readers
) -> None:
    """Run a job under one attack and again until it is done; count its rows."""
    for run in range(_MAX_RUNS):
        result.resumes += run > 0
        done, _ = environment.run(output, attack)
        readers.wait_for_polls()
        if done:
            break
    else:
        result.notes.append(f"{attack}: not done after {_MAX_RUNS} runs")
    result.kills += environment.was_killed_there(output)
    rows = environment.rows(output)
    lost = NUM_ROWS - len(set(rows))
    doubled = len(rows) - len(set(rows))
    result.outputs += 1
    result.rows += len(rows)
    result.lost += lost
    result.doubled += doubled
    if lost or doubled:
        result.notes.append(f"{attack}: {lost} rows lost, {doubled} doubled")


def _repeat(result: ScenarioResult, environment: Environment, output: str) -> None:
    """Run a finished job once more, as a user does who repeats the command."""
    before = len(environment.rows(output))
    environment.run(output, None)
    result.notes.append(
        "a finished, undisturbed job that is run again has "
        f"{len(environment.rows(output)):,} rows, after {before:,}"
    )


# --- one job ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """The environment of all jobs of a place.

    Attributes:
        workspace: Workspace of the test.
        place: Storage of inputs and outputs.
        address: Address of Ray.
        keeper: Process that all of Ray descends from.
    """

    workspace: Workspace
    place: Place
    address: str
    keeper: int

    def run(self, output: str, attack: Attack | None) -> tuple[bool, Counter[Event]]:
        """Run a job; return whether it finished, and the moments that occurred."""
        control = self._control(output)
        control.mkdir(exist_ok=True)
        (control / "trace").write_text("")
        ended = Child(lambda: self._job(output, control, attack)).wait(300)
        self._wait_until_idle()
        lines = (control / "trace").read_text().splitlines()
        events = Counter(Event(*json.loads(line)) for line in lines)
        return not ended.signal and not ended.error, events

    def was_killed_there(self, output: str) -> bool:
        return (self._control(output) / "killed").exists()

    def rows(self, output: str) -> list[int]:
        """Read the row numbers of an output with Arrow; files that are no Parquet hold none."""

        def read() -> None:
            filesystem = arrow_filesystem(self.place)
            path = output.removeprefix("s3://")
            dataset = pa.dataset.dataset(
                path, filesystem=filesystem, format="parquet", exclude_invalid_files=True
            )
            column = dataset.to_table(columns=["row"]).column("row")
            (self._control(output) / "rows").write_text(json.dumps(column.to_pylist()))

        in_child(read)
        rows: list[int] = json.loads((self._control(output) / "rows").read_text())
        return rows

    def _control(self, output: str) -> Path:
        return self.workspace.folder / f"control-{self.place.name}-{Path(output).name}"

    def _job(self, output: str, control: Path, attack: Attack | None) -> None:
        import ray
        from ray.data.checkpoint import CheckpointConfig

        ray.init(address=self.address, log_to_driver=False)
        inner = arrow_filesystem(self.place)
        path = output.removeprefix("s3://")
        watched = pa.fs.PyFileSystem(Watched(inner, path, str(control), os.getpid(), attack))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.checkpoint_config = CheckpointConfig(
            id_column="id",
            checkpoint_path=f"{path}-checkpoint",
            override_filesystem=watched,
        )
        rows = ray.data.range(NUM_ROWS, override_num_blocks=NUM_BLOCKS)
        rows.map_batches(_with_value, batch_size=None).write_parquet(path, filesystem=watched)

    def _wait_until_idle(self) -> None:
        """Wait until Ray has ended the tasks of a dead driver."""
        deadline = time.monotonic() + _SECONDS_UNTIL_IDLE
        while time.monotonic() < deadline:
            if not titled(family(self.keeper), *_AT_WORK):
                return
            time.sleep(0.2)


def _with_value(batch: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.2)
    return {**batch, "row": batch["id"], "value": batch["id"] * 2}


def _keep_ray(address: Path) -> None:
    """Run a Ray that outlives its drivers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    ready = address.with_suffix(".new")
    ready.write_text(cluster.address)
    ready.rename(address)
    signal.pause()


def _await(file: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while not file.exists():
        assert time.monotonic() < deadline, "Ray does not start"
        time.sleep(0.1)


# --- the file system that kills ---------------------------------------------------------------


class Watched(pa.fs.FileSystemHandler):  # type: ignore[misc]
    """Forwards every call, records those that change something, and kills at one of them.

    Args:
        inner: Arrow's file system.
        output: Path of the data files; checkpoints are beside it.
        control: Folder for the trace, shared by all processes of the job.
        driver: Its process.
        attack: When to kill whom; None only notes.
    """

    def __init__(
        self, inner: Any, output: str, control: str, driver: int, attack: Attack | None
    ) -> None:
        self._inner, self._output, self._control = inner, output, control
        self._driver, self._attack = driver, attack

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Watched) and self._inner == other._inner

    def __hash__(self) -> int:
        return hash(self._output)

    def _around(self, call: str, path: str, work: Callable[[], Any]) -> Any:
        target = self._target(path)
        self._note(Event(call, target, "before"))
        result = work()
        self._note(Event(call, target, "after"))
        return result

    def _target(self, path: str) -> str:
        if path.endswith(".pending.parquet"):
            return "a pending checkpoint"
        if path.startswith(f"{self._output}-checkpoint"):
            return "a checkpoint" if path.endswith(".parquet") else "the checkpoints' folder"
        return "a data file" if path.endswith(".parquet") else "the output's folder"

    def _note(self, event: Event) -> None:
        """Record a moment; at the attack's moment, kill the process, once."""
        trace = Path(self._control) / "trace"
        line = json.dumps(event)
        with trace.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            nth = file.read().splitlines().count(line) + 1
            file.write(f"{line}\n")
        attack = self._attack
        if attack is None or (event, nth) != (attack.event, attack.nth):
            return
        killed = Path(self._control) / "killed"
        if killed.exists():
            return
        killed.touch()
        if attack.driver_too:
            os.kill(self._driver, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def get_type_name(self) -> str:
        return f"watched+{self._inner.type_name}"

    def normalize_path(self, path: str) -> str:
        return str(self._inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._inner.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self._inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._around("create_dir", path, lambda: self._inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._around("delete_dir", path, lambda: self._inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self._around("delete_file", path, lambda: self._inner.delete_file(path))

    def move(self, src: str, dest: str) -> None:
        if self._inner.type_name != "s3":
            self._around("move", src, lambda: self._inner.move(src, dest))
            return
        self._around("copy", src, lambda: self._inner.copy_file(src, dest))
        self._around("delete_file", src, lambda: self._inner.delete_file(src))

    def copy_file(self, src: str, dest: str) -> None:
        self._inner.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self._inner.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self._inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return self._around(
            "open_output_stream",
            path,
            lambda: self._inner.open_output_stream(path, metadata=metadata),
        )

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError
