"""What MLflow keeps of a training: tags, resolved parameters, data sets and the best epoch."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from eagleray.core.ray_session import Cluster
from eagleray.data.split_file import write_split
from eagleray.registry.registry import Registry
from eagleray.training.loop.checkpoint import BestEpoch
from eagleray.training.loop.optimizer import learning_rate
from eagleray.training.plan import TrainPlan
from eagleray.training.prepare import TrainJob
from eagleray.training.result import TrainResult
from eagleray.training.runs import create_run
from eagleray.training.spec import TrainSpec
from eagleray.training.tracking import (
    log_description,
    log_result,
    resolved_parameters,
    track_run,
)
from eagleray.training.tuning.trial_runs import TrialRuns
from eagleray.training.tuning.trials import Trial
from tests.support.models import registry_in, small_package
from tests.support.training import ACCURACY, epoch_metrics, plan_for, small_spec, write_stripes

METRIC = ACCURACY.metric
CLUSTER = Cluster(num_cpus=2, num_gpus=0, embedded=True)
METRIC = ACCURACY.metric


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registry_in(tmp_path_factory.mktemp("tracking"))


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    return write_stripes(tmp_path / "stripes", 10)


def job_of(spec: TrainSpec, registry: Registry, home: Path) -> TrainJob:
    plan, _ = plan_for(spec, home)
    return TrainJob(plan, registry.settings, "candidate")


def test_a_run_says_where_it_comes_from(registry: Registry, stripes: Path) -> None:
    spec = small_spec(
        stripes, experiment="stripes", tags=("team=vision", "note=a=b"), notes="**Bands**"
    )
    job = job_of(spec, registry, stripes.parent)
    run = create_run(registry.settings, spec)
    write_split(job.plan.split, run.split_file, data_digest="0" * 64, seed=0)
    with track_run(registry, spec, run.name, kind="train", run=run) as tracked:
        pass
    found = registry.client.get_run(tracked.run_id)
    assert found.info.run_name == run.name
    assert registry.client.get_experiment(found.info.experiment_id).name == "stripes"
    tags = found.data.tags
    assert (tags["team"], tags["note"]) == ("vision", "a=b")
    assert tags["mlflow.note.content"] == "**Bands**"
    assert tags["mlflow.source.name"] == "eagleray train"
    assert tags["eagleray.kind"] == "train"
    assert tags["eagleray.run"] == run.name
    for key in ("eagleray.folder", "eagleray.specification", "eagleray.split"):
        assert Path(tags[key]).exists()


def test_open_fields_are_parameters_with_their_values(registry: Registry, stripes: Path) -> None:
    spec = small_spec(stripes, notes="no parameter")
    found = resolved_parameters(job_of(spec, registry, stripes.parent), _plan(spec), CLUSTER)
    assert found["architecture"] == "lenet5"
    assert (found["contract"], found["image_size"]) == ("whole-image", 32)
    assert (found["num_classes"], found["labels"]) == (2, "horizontal, vertical")
    assert found["device"] == "cpu"
    assert (found["monitor"], found["mode"]) == ("accuracy", "max")
    assert (found["train_images"], found["validation_images"], found["test_images"]) == (14, 2, 4)
    assert "parent" not in found
    assert not {"notes", "tags", "experiment"} & found.keys()


def test_a_parent_s_alias_is_resolved_to_its_version(registry: Registry, stripes: Path) -> None:
    version = registry.register(small_package(name="elder"), alias="live")
    spec = small_spec(stripes, architecture=None)
    plan = dataclasses.replace(_plan(spec), parent=version.digest)
    found = resolved_parameters(job_of(spec, registry, stripes.parent), plan, CLUSTER)
    assert (found["parent"], found["parent_digest"]) == ("elder/1", version.digest)


def _plan(spec: TrainSpec) -> TrainPlan:
    return plan_for(spec, Path(spec.data).parent)[0]


def test_the_splits_are_inputs(registry: Registry, stripes: Path) -> None:
    spec = small_spec(stripes)
    job = job_of(spec, registry, stripes.parent)
    with track_run(registry, spec, "inputs", kind="train") as tracked:
        log_description(tracked, job, job.plan, CLUSTER)
    inputs = registry.client.get_run(tracked.run_id).inputs.dataset_inputs
    assert {item.tags[0].value: (item.dataset.digest, item.dataset.source) for item in inputs} == {
        name: (images.digest[:12], f'{{"uri": "{stripes}"}}')
        for name, images in job.plan.split.by_name.items()
    }


def test_the_summary_metrics_are_those_of_the_best_epoch(registry: Registry, stripes: Path) -> None:
    spec = small_spec(stripes, epochs=3)
    epochs = tuple({METRIC: score, "train_loss": 1.0} for score in (0.5, 0.9, 0.7))
    losses = tuple(1.0 / step for step in range(1, 3001))
    result = TrainResult(BestEpoch(2, epochs[1]), epochs, losses, ended_early=False)
    with track_run(registry, spec, "best", kind="train") as tracked:
        for number, metrics in enumerate(epochs, start=1):
            tracked.log_epoch(number, metrics)
        log_result(tracked, spec, result)
    found = registry.client.get_run(tracked.run_id).data.metrics
    assert (found["best_epoch"], found[f"best_{METRIC}"], found[METRIC]) == (2, 0.9, 0.7)
    rates = registry.client.get_metric_history(tracked.run_id, "learning_rate")
    assert [rate.step for rate in rates] == list(range(3, 3001, 3))
    assert rates[0].value == pytest.approx(learning_rate(spec, 2, 3000))
    steps = registry.client.get_metric_history(tracked.run_id, "train_loss_step")
    assert steps[0].value == pytest.approx(sum(losses[:3]) / 3)


def trial(number: int, *scores: float, **changes: object) -> Trial:
    made = Trial(number, f"key-{number}", {"learning_rate": 0.1 * number}, ACCURACY)
    epochs = tuple(epoch_metrics(score) for score in scores)
    return dataclasses.replace(made, epochs=epochs, **changes)  # type: ignore[arg-type]


def test_trials_are_children_with_their_values_epochs_and_state(
    registry: Registry, stripes: Path
) -> None:
    spec = small_spec(stripes)
    with (
        contextlib.suppress(KeyboardInterrupt),
        track_run(registry, spec, "tuning", kind="tune") as parent,
        TrialRuns(registry, spec, parent, "tuning") as runs,
    ):
        runs.update(trial(1, 0.5))
        runs.update(trial(1, 0.5, 0.75, state="finished"))
        runs.update(trial(2, state="failed"))
        runs.update(trial(2, state="invalid", reason="they do not go together"))
        runs.update(trial(3, 0.25))
        raise KeyboardInterrupt
    children = registry.child_runs(parent)
    assert sorted(children) == [f"tuning-trial-{number}" for number in (1, 2, 3)]
    first, second, third = (
        registry.client.get_run(children[f"tuning-trial-{number}"]) for number in (1, 2, 3)
    )
    assert [run.info.status for run in (first, second, third)] == ["FINISHED", "FAILED", "KILLED"]
    assert first.data.params == {"learning_rate": "0.1"}
    assert first.data.metrics[f"best_{METRIC}"] == 0.75
    history = registry.client.get_metric_history(first.info.run_id, METRIC)
    assert [(item.step, item.value) for item in history] == [(1, 0.5), (2, 0.75)]
    assert first.data.tags["eagleray.state"] == "finished"
    assert second.data.tags["eagleray.state"] == "invalid"
    assert second.data.tags["eagleray.reason"] == "they do not go together"
    assert first.data.tags["mlflow.source.name"] == "eagleray tune"

    # A tuning that is resumed continues the same children.
    with (
        track_run(registry, spec, "tuning", kind="tune", run_id=parent.run_id) as resumed,
        TrialRuns(registry, spec, resumed, "tuning") as runs,
    ):
        runs.update(trial(3, 0.25, 0.5, state="stopped"))
    assert registry.child_runs(parent) == children
    assert registry.client.get_run(children["tuning-trial-3"]).info.status == "FINISHED"
