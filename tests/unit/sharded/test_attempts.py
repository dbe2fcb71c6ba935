"""Shards are run again until each has its result, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import ray

from eagleray.core.errors import InputError, JobFailedError, PackageError, UnsupportedError
from eagleray.sharded.attempts import Shards, run_until_done


@dataclass(frozen=True)
class Finished:
    shard: int
    num_rows: int = 1
    num_failed: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    repeated: bool | None = None


class Runs:
    """Plays runs of shards: each finishes some of them, and then fails or ends."""

    def __init__(self, *runs: tuple[set[int], Exception | None]) -> None:
        self._runs = iter(runs)
        self.given: list[list[int]] = []

    def __call__(self, shards: Shards) -> Iterator[Finished]:
        self.given.append(shards.tolist())
        finished, error = next(self._runs)
        for shard in shards:
            if shard in finished:
                yield Finished(shard)
        if error is not None:
            raise error


LOST = ray.exceptions.WorkerCrashedError()


def test_shards_without_a_result_are_run_again() -> None:
    runs = Runs(({0, 2}, LOST), (set(), LOST), (set(), LOST), ({1}, LOST), ({3}, None))
    found = [finished.shard for finished in run_until_done(range(4), runs)]
    assert found == [0, 2, 1, 3]
    assert runs.given == [[0, 1, 2, 3], [1, 3], [1, 3], [1, 3], [3]]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LOST, "The workers stopped: a worker process died. What is done is kept"),
        (None, "The workers stopped: Shards came back without a result. What is done is kept"),
    ],
)
def test_runs_without_any_result_are_given_up(error: Exception | None, sentence: str) -> None:
    runs = Runs(*[({0}, error)] * 4)
    with pytest.raises(JobFailedError, match=r"^[^\n]+$") as caught:
        list(run_until_done([0, 1], runs))
    assert str(caught.value).startswith(sentence)
    assert runs.given == [[0, 1], [1], [1], [1]]


def test_a_model_that_a_worker_refuses_is_not_tried_again() -> None:
    error = ray.exceptions.RayError("eagleray.core.errors.PackageError: the weights are damaged.")
    runs = Runs((set(), error))
    with pytest.raises(PackageError, match=r"^the weights are damaged\.$"):
        list(run_until_done([0], runs))
    assert runs.given == [[0]]


def test_what_a_machine_cannot_run_is_not_tried_again() -> None:
    said = "eagleray.core.errors.UnsupportedError: On node a: The engine openvino is missing."
    runs = Runs((set(), ray.exceptions.RayError(f"Traceback\n{said}")))
    with pytest.raises(UnsupportedError, match=r"^On node a: The engine openvino is missing\.$"):
        list(run_until_done([0, 1], runs))
    assert runs.given == [[0, 1]]


def test_what_eagleray_raised_in_a_worker_is_raised_here() -> None:
    raised = InputError("The bucket is gone.")
    error = ray.exceptions.RayTaskError("pack_shard", "Traceback", raised)
    with pytest.raises(InputError, match="The bucket is gone"):
        list(run_until_done([0], Runs((set(), error))))


def test_nothing_is_run_where_nothing_is_left() -> None:
    assert list(run_until_done([], Runs())) == []
