"""Runs that are extended: their learning rates, their records, and that a resume is exact."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.training.events import EpochCompleted
from eagleray.training.extension import Extension, describe_extension, make_extension
from eagleray.training.job import open_run
from eagleray.training.loop.checkpoint import Progress
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.optimizer import learning_rate
from eagleray.training.loop.trainer import Trainer
from eagleray.training.prepare import open_job, reopen_job
from eagleray.training.runs import RunRecord
from eagleray.training.spec import TrainSpec
from tests.support.numerics import SAME_LOSS
from tests.support.training import KilledError, plan_for, small_spec, write_stripes

pytestmark = pytest.mark.numerical

FROM_10_TO_20 = Extension(step=100, epoch=10, planned=10, epochs=20)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes")


def rates(schedule: str, *extensions: Extension) -> list[float]:
    """Return the rates of 10 steps an epoch."""
    epochs = extensions[-1].epochs if extensions else 10
    spec = small_spec("d", epochs=epochs, lr_schedule=schedule, learning_rate=1.0)
    steps = 10 * epochs
    return [learning_rate(spec, step, steps, extensions) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "step", "linear", "cosine", "one_cycle"])
def test_an_extension_changes_no_rate_before_it(schedule: str) -> None:
    assert rates(schedule, FROM_10_TO_20)[:100] == rates(schedule)


def test_constant_and_step_keep_their_last_rate() -> None:
    for schedule, last in (("constant", 1.0), ("step", 0.01)):
        assert rates(schedule, FROM_10_TO_20)[100:] == pytest.approx([last] * 100)


def test_linear_and_cosine_have_the_rates_of_a_longer_run() -> None:
    for schedule in ("linear", "cosine"):
        longer = small_spec("d", epochs=20, lr_schedule=schedule, learning_rate=1.0)
        expected = [learning_rate(longer, step, 200) for step in range(100, 200)]
        assert rates(schedule, FROM_10_TO_20)[100:] == pytest.approx(expected)


def test_one_cycle_begins_a_cycle_over_the_rest_from_its_present_rate() -> None:
    unfinished = Extension(step=55, epoch=5, planned=10, epochs=20)
    found = rates("one_cycle", unfinished)
    assert found[54] < found[55] < found[84] == pytest.approx(1.0)  # a fifth of 145 steps: 29
    assert found[55] - found[54] < 0.01
    assert all(one > other for one, other in itertools.pairwise(found[84:]))
    again = rates("one_cycle", unfinished, Extension(step=200, epoch=20, planned=20, epochs=30))
    assert again[:200] == found
    assert again[200] < 0.01
    assert max(again[200:]) == pytest.approx(1.0)


def test_a_run_is_extended_to_more_epochs_only() -> None:
    def extend(progress: Progress | None, epochs: int) -> Extension | None:
        return make_extension(
            "run", progress, planned=10, epochs=epochs, version=None, mlflow_run="m"
        )

    running = Progress(epoch=3, step=4, total_steps=34)
    expected = Extension(step=34, epoch=3, planned=10, epochs=12, mlflow_run="m")
    assert extend(running, 12) == expected
    assert extend(running, 10) is None  # the command that extended it, once more
    with pytest.raises(InputError, match="--epochs 9: run run is planned for 10 epochs; name a"):
        extend(running, 9)
    early = Progress(epoch=6, total_steps=60, ended=True)
    found = extend(early, 7)
    assert found is not None
    assert (found.epoch, found.epochs) == (6, 7)
    with pytest.raises(InputError, match="run run has finished 6 epochs"):
        extend(early, 6)


def test_an_extension_is_described_with_the_rule_of_its_schedule() -> None:
    told = describe_extension(small_spec("d", epochs=20), FROM_10_TO_20)
    assert told == (
        "extended from 10 to 20 epochs, after 10 finished ones; a new cycle of the learning rate "
        "over the rest starts from its present value (one_cycle)"
    )


def train_on(
    spec: TrainSpec, home: Path, *extensions: Extension, dies_after: int | None = None
) -> Trainer:
    """Train to the end, or until an epoch is finished."""
    _, worker_input = plan_for(spec, home)
    worker_input = dataclasses.replace(worker_input, extensions=extensions)

    def report(event: Any) -> None:
        if isinstance(event, EpochCompleted) and event.epoch == dies_after:
            trainer.wait_for_checkpoint()
            raise KilledError

    trainer = Trainer(worker_input, single_process(spec), report)
    if dies_after is None:
        trainer.run()
    else:
        with pytest.raises(KilledError):
            trainer.run()
    return trainer


def test_an_extended_run_trains_on_and_its_resume_is_exact(stripes: Path, tmp_path: Path) -> None:
    short, long = (small_spec(stripes, epochs=epochs) for epochs in (2, 5))
    steps = plan_for(short, tmp_path)[1]
    per_epoch = len(steps.train) // 8
    extension = Extension(step=2 * per_epoch, epoch=2, planned=2, epochs=5)
    found = []
    for name, dies_after in (("whole", None), ("killed", 3)):
        first = train_on(short, tmp_path / name)
        assert first.progress.ended
        if dies_after is not None:
            train_on(long, tmp_path / name, extension, dies_after=dies_after)
        found.append(train_on(long, tmp_path / name, extension))
    whole, killed = (one._past_losses.tolist() for one in found)
    assert len(whole) == 5 * per_epoch
    assert whole == pytest.approx(killed, rel=SAME_LOSS)
    assert [epoch["train_loss"] for epoch in found[0].progress.epochs] == pytest.approx(
        [epoch["train_loss"] for epoch in found[1].progress.epochs], rel=SAME_LOSS
    )
    assert whole[: 2 * per_epoch] == pytest.approx(first._past_losses.tolist(), rel=SAME_LOSS)


def test_early_stopping_counts_from_the_extension_on(stripes: Path, tmp_path: Path) -> None:
    fields = {"learning_rate": 1e-12, "monitor": "loss", "mode": "max", "patience": 1}
    stopped = train_on(small_spec(stripes, epochs=6, **fields), tmp_path)
    assert stopped.progress.ended
    epoch, steps = stopped.progress.epoch, stopped.progress.total_steps
    extension = Extension(step=steps, epoch=epoch, planned=6, epochs=9)
    again = train_on(small_spec(stripes, epochs=9, **fields), tmp_path, extension)
    assert again.progress.epoch == epoch + 1  # it had its patience once more


def test_the_record_keeps_the_extension_before_training_goes_on(
    stripes: Path, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)
    spec = small_spec(stripes, epochs=2)
    run, record = open_run(open_job(spec, settings, alias="candidate"))
    train_in = plan_for(spec, tmp_path / "elsewhere")[1]
    train_in = dataclasses.replace(train_in, checkpoint_folder=run.checkpoints)
    Trainer(train_in, single_process(spec), lambda _: None).run()
    run.write(record.model_copy(update={"mlflow_run": "first", "version": "stripes/1"}))
    with pytest.raises(InputError, match=r"registered stripes/1 after 2 epochs; name more with"):
        reopen_job(run.name, settings)
    with pytest.raises(InputError, match="--epochs must be a valid integer"):
        reopen_job(run.name, settings, epochs="two")
    job = reopen_job(run.name, settings, epochs="4")
    assert job.spec.epochs == 4
    assert run.read().extensions == ()  # nothing happened yet
    open_run(job)
    expected = Extension(
        step=train_in_steps(spec, tmp_path),
        epoch=2,
        planned=2,
        epochs=4,
        version="stripes/1",
        mlflow_run="first",
    )
    assert run.read() == RunRecord(
        run=run.name,
        created=record.created,
        data_digest=record.data_digest,
        alias="candidate",
        extensions=(expected,),
    )
    assert run.read_spec().epochs == 4
    again = reopen_job(run.name, settings)
    assert (again.spec.epochs, again.plan.extensions) == (4, (expected,))
    assert reopen_job(run.name, settings, epochs=4).plan.extensions == (expected,)


def train_in_steps(spec: TrainSpec, home: Path) -> int:
    return 2 * (len(plan_for(spec, home)[1].train) // 8)
