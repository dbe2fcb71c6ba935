"""Runs in MLflow: experiment, tags, final parameters, curves, data sets, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eagleray.core.errors import InputError
from eagleray.registry.registry import Registry
from eagleray.registry.tracking import PARENT_TAG, TrackedDataset


def test_a_run_has_its_name_tags_user_and_experiment(registry: Registry, name: str) -> None:
    with registry.start_run(f"{name}-1", experiment="flowers", tags={"team": "vision"}) as run:
        pass
    found = registry.client.get_run(run.run_id)
    assert found.info.run_name == f"{name}-1"
    assert found.data.tags["team"] == "vision"
    assert found.data.tags["mlflow.user"] == registry.settings.actor
    experiment = registry.client.get_experiment(found.info.experiment_id)
    assert experiment.name == "flowers"
    assert experiment.artifact_location == registry.settings.artifacts


def test_processes_that_start_at_once_make_the_registry_together(tmp_path: Path) -> None:
    program = "from eagleray.registry.registry import Registry; Registry()"
    environment = os.environ | {"EAGLERAY_HOME": str(tmp_path)}
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    ends = [process.communicate()[1] for process in starts]
    assert [process.returncode for process in starts] == [0, 0, 0], ends


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(
    registry: Registry,
) -> None:
    number = registry.client.create_experiment("gone")
    registry.client.delete_experiment(number)
    with pytest.raises(InputError, match=f"restore --experiment-id {number}"):
        registry.start_run("late", experiment="gone")


def test_a_resumed_run_keeps_its_parameters_and_tags_what_changed(registry: Registry) -> None:
    with registry.start_run("extended") as run:
        run.log_parameters({"epochs": 3, **{f"field_{number}": number for number in range(150)}})
    with registry.start_run("extended", run_id=run.run_id) as resumed:
        resumed.log_parameters({"epochs": 5, "field_1": 1, "device": "gpu"})
    found = registry.client.get_run(run.run_id).data
    assert (found.params["epochs"], found.params["device"]) == ("3", "gpu")
    assert len(found.params) == 152
    resumed_tags = {key: value for key, value in found.tags.items() if "resumed" in key}
    assert resumed_tags == {"eagleray.resumed.epochs": "5"}


def test_a_step_of_a_metric_is_recorded_once(registry: Registry) -> None:
    with registry.start_run("tuned") as run:
        run.log_metrics({"trial_recall[frog]": 0.5}, step=1)
        run.log_metrics({"trial_recall[frog]": 0.5}, step=1)
    with registry.start_run("tuned", run_id=run.run_id) as resumed:
        resumed.log_curves({"trial_recall[frog]": [(1, 0.5), (2, 0.75)], "new": [(1, 0.25)]})
    history = registry.client.get_metric_history(run.run_id, "trial_recall/frog")
    assert [(item.step, item.value) for item in history] == [(1, 0.5), (2, 0.75)]
    assert len(registry.client.get_metric_history(run.run_id, "new")) == 1


def test_curves_of_more_points_than_a_request_takes_are_kept(registry: Registry) -> None:
    with registry.start_run("curve") as run:
        run.log_curves({"loss": [(step, 1.0 / step) for step in range(1, 1301)]})
    history = registry.client.get_metric_history(run.run_id, "loss")
    assert [item.step for item in history] == list(range(1, 1301))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("validation_accuracy", "validation_accuracy"),
        ("validation_recall[frog]", "validation_recall/frog"),
        ("f1[a/b (c)|d]", "f1/a_b _c__d"),
        ("f1[..]", "f1/_"),
        (f"f1[{'é' * 300}]", f"f1/{'é' * 150}"),
    ],
)
def test_a_metric_of_a_label_has_a_name_that_mlflow_takes(
    registry: Registry, name: str, key: str
) -> None:
    with registry.start_run("one") as tracked:
        tracked.log_epoch(1, {"train_loss": 0.5, name: 0.25})
    metrics = registry.client.get_run(tracked.run_id).data.metrics
    assert metrics == {"train_loss": 0.5, key: 0.25}


def test_a_run_whose_process_was_killed_is_ended_when_another_continues_it(
    registry: Registry,
) -> None:
    tracked = registry.start_run("one")
    registry.end_interrupted_run(tracked.run_id)
    assert registry.client.get_run(tracked.run_id).info.status == "KILLED"
    tracked.end("FINISHED")
    registry.end_interrupted_run(tracked.run_id)
    registry.end_interrupted_run(None)
    registry.end_interrupted_run("0" * 32)  # deleted for good
    assert registry.client.get_run(tracked.run_id).info.status == "FINISHED"


def test_data_sets_are_inputs_of_the_run(registry: Registry) -> None:
    dataset = TrackedDataset(
        "flowers", "train", "a" * 64, "s3://data/flowers", ("uri", "label"), {"images": 3}
    )
    with registry.start_run("inputs") as run:
        run.log_datasets([dataset])
        run.log_datasets([dataset])
    (found,) = registry.client.get_run(run.run_id).inputs.dataset_inputs
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "train")]
    assert (found.dataset.name, found.dataset.digest) == ("flowers", "a" * 12)
    assert (found.dataset.source_type, found.dataset.source) == (
        "s3",
        '{"uri": "s3://data/flowers"}',
    )


def test_children_are_found_by_name(registry: Registry) -> None:
    with registry.start_run("parent") as parent:
        tags = {PARENT_TAG: parent.run_id}
        with registry.start_run("child", tags=tags) as child, registry.start_run("other"):
            pass
        assert registry.child_runs(parent) == {"child": child.run_id}


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fail() -> None:
    raise OSError


@pytest.mark.parametrize(
    ("work", "status"), [(list, "FINISHED"), (_fail, "FAILED"), (_interrupt, "KILLED")]
)
def test_the_end_of_a_run_is_its_status(
    registry: Registry, work: Callable[[], object], status: str
) -> None:
    try:
        with registry.start_run("ends") as run:
            work()
    except (OSError, KeyboardInterrupt):
        pass
    assert registry.client.get_run(run.run_id).info.status == status


def test_the_machine_is_sampled_unless_that_is_switched_off(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")

    def sampled() -> set[str]:
        with registry.start_run("sampled", samples_system=True) as run:
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                time.sleep(0.1)
        return set(registry.client.get_run(run.run_id).data.metrics)

    assert sampled() == set()
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING")
    assert "system/cpu_utilization_percentage" in sampled()
