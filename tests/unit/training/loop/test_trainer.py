"""The trainer in one process: its losses, its resumes, and the weights it keeps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.training.callback import Decision
from eagleray.training.events import (
    DecisionRequested,
    EpochCompleted,
    LossNotFinite,
    TrainEvent,
    TrainingStarted,
)
from eagleray.training.launch import describe_stop
from eagleray.training.loop.checkpoint import CheckpointStore
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.trainer import Trainer
from eagleray.training.result import load_best_checkpoint
from tests.support.numerics import SAME_LOSS
from tests.support.training import (
    plan_for,
    small_spec,
    train_in_process,
    train_until,
    write_stripes,
)

pytestmark = pytest.mark.numerical

RICH: dict[str, Any] = {
    "random_translation": 0.1,
    "horizontal_flip": True,
    "random_resized_crop": 0.6,
    "randaugment": 9,
    "random_erasing": 0.3,
    "mixup": 0.2,
    "dropout": 0.2,
    "ema_decay": 0.9,
    "max_grad_norm": 1.0,
}


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes")


class ScoredTrainer(Trainer):
    """Has given values of a validation metric instead of its own."""

    scores: Iterator[float]
    metric = "validation_accuracy"

    def validate(self) -> dict[str, float]:
        return {**super().validate(), self.metric: next(self.scores)}


def test_the_same_seed_gives_the_same_losses(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, **RICH)
    first, _ = train_in_process(spec, tmp_path / "one")
    second, _ = train_in_process(spec, tmp_path / "two")
    assert first.losses == pytest.approx(second.losses, rel=SAME_LOSS)
    assert len(first.losses) == 3 * (len(plan_for(spec, tmp_path)[1].train) // 8)
    other, _ = train_in_process(small_spec(stripes, **RICH, seed=1), tmp_path / "three")
    assert other.losses != pytest.approx(first.losses, rel=0.01)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(
    stripes: Path, tmp_path: Path, optimizer: str, step: int
) -> None:
    spec = small_spec(stripes, **RICH, optimizer=optimizer, checkpoint_steps=2)
    whole, _ = train_in_process(spec, tmp_path / "whole")
    train_until(spec, tmp_path / "stopped", step)
    again, events = train_in_process(spec, tmp_path / "stopped")
    started = next(event for event in events if isinstance(event, TrainingStarted))
    assert started.total_steps <= step
    assert (step < 2) == (started.total_steps == 0)
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    assert [epoch["validation_loss"] for epoch in again.epochs] == pytest.approx(
        [epoch["validation_loss"] for epoch in whole.epochs], rel=SAME_LOSS
    )


@pytest.mark.parametrize("step", [3, 5, 6])
def test_a_resumed_run_has_the_training_metrics_of_an_undisturbed_one(
    stripes: Path, tmp_path: Path, step: int
) -> None:
    changes = {**RICH, "mixup": 0.0, "sampler": "balanced", "checkpoint_steps": 1}
    spec = small_spec(stripes, **changes)
    whole, _ = train_in_process(spec, tmp_path / "whole")
    train_until(spec, tmp_path / "stopped", step)
    again, events = train_in_process(spec, tmp_path / "stopped")
    started = next(event for event in events if isinstance(event, TrainingStarted))
    assert started.total_steps == step
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)
    names = [name for name in whole.epochs[0] if name.startswith(("train_", "validation_"))]
    assert {"train_accuracy", "train_f1_macro", "validation_recall_macro"} <= set(names)
    for one, other in zip(again.epochs, whole.epochs, strict=True):
        assert [one[name] for name in names] == pytest.approx(
            [other[name] for name in names], rel=SAME_LOSS
        )


def test_the_training_accuracy_is_that_of_the_steps_outputs(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, epochs=2, batch_size=4, gradient_accumulation_steps=2)
    _, worker_input = plan_for(spec, tmp_path)
    right: list[torch.Tensor] = []

    class WatchedTrainer(Trainer):
        def step(self, network: Any, *arguments: Any) -> torch.Tensor:
            batch = arguments[2]
            with torch.no_grad():  # of LeNet-5, which has neither dropout nor statistics
                right.append(network(*batch.inputs).argmax(dim=1) == batch.targets)
            return super().step(network, *arguments)

    trainer = WatchedTrainer(worker_input, single_process(spec), lambda _: None)
    trainer.run()
    for number, epoch in enumerate(trainer.progress.epochs):
        size = trainer.sampler.steps_per_epoch
        own = torch.cat(right[number * size : (number + 1) * size])
        assert epoch["train_accuracy"] == pytest.approx(float(own.float().mean()))


def test_mixed_images_have_no_training_accuracy(stripes: Path, tmp_path: Path) -> None:
    trained, _ = train_in_process(small_spec(stripes, epochs=1, cutmix=1.0), tmp_path)
    assert [name for name in trained.epochs[0] if name.startswith("train_")] == ["train_loss"]


def test_gradient_accumulation_gives_the_same_losses(stripes: Path, tmp_path: Path) -> None:
    whole, _ = train_in_process(small_spec(stripes), tmp_path / "whole")
    accumulated, _ = train_in_process(
        small_spec(stripes, gradient_accumulation_steps=4), tmp_path / "accumulated"
    )
    assert accumulated.losses == pytest.approx(whole.losses, rel=1e-4)


def test_only_the_newest_checkpoints_are_kept(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, checkpoint_steps=2, keep_checkpoints=3, batch_size=4)
    train_in_process(spec, tmp_path)
    names = CheckpointStore(str(tmp_path / "checkpoints")).names()
    assert names == [f"step-{step:09d}.safetensors" for step in (24, 22, 20)]
    progress, latest = CheckpointStore(str(tmp_path / "checkpoints")).progress(), names[0]
    assert progress == CheckpointStore(str(tmp_path / "checkpoints")).read(latest).progress


def test_partial_files_of_a_killed_writer_are_deleted(stripes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    begun = folder / ".step-000000002.safetensors.0123456789ab.tmp"
    begun.write_bytes(b"half")
    (folder / "notes.txt").touch()  # not a checkpoint
    train_in_process(small_spec(stripes, epochs=1), tmp_path)
    assert sorted(file.name for file in folder.iterdir()) == [
        "notes.txt",
        "step-000000004.safetensors",
    ]


def test_the_best_epoch_is_loaded_not_the_last(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, epochs=2, learning_rate=1e-2)
    plan, worker_input = plan_for(spec, tmp_path)
    trainer = ScoredTrainer(worker_input, single_process(spec), lambda _: None)
    trainer.scores = iter([0.9, 0.4])
    trainer.run()
    trained = load_best_checkpoint(worker_input.checkpoint_folder, plan.module, epochs=2)
    assert trained.best.epoch == 1
    checkpoint = CheckpointStore(worker_input.checkpoint_folder).latest()
    assert checkpoint is not None
    kept, last = checkpoint.with_prefix("best"), checkpoint.with_prefix("model")
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    for name, tensor in plan.module.state_dict().items():
        assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize(
    ("changes", "metric", "best"),
    [
        ({"monitor": "loss"}, "validation_loss", 2),
        ({"monitor": "loss", "mode": "max"}, "validation_loss", 1),
        ({"monitor": "ece"}, "validation_ece", 2),
        ({"sampler": "balanced"}, "validation_recall_macro", 1),
    ],
)
def test_the_monitored_metric_selects_the_epoch_whose_weights_are_kept(
    stripes: Path, tmp_path: Path, changes: dict[str, Any], metric: str, best: int
) -> None:
    spec = small_spec(stripes, learning_rate=1e-2, **changes)
    plan, worker_input = plan_for(spec, tmp_path)
    kept: list[dict[str, torch.Tensor]] = []

    class WatchedTrainer(ScoredTrainer):
        def finish_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
            kept.append({key: value.clone() for key, value in self.model.weights().items()})
            super().finish_epoch(epoch, metrics)

    trainer = WatchedTrainer(worker_input, single_process(spec), lambda _: None)
    trainer.metric, trainer.scores = metric, iter([0.9, 0.4, 0.6])
    trainer.run()
    trained = load_best_checkpoint(worker_input.checkpoint_folder, plan.module, epochs=3)
    assert trained.best.epoch == best
    for name, tensor in plan.module.state_dict().items():
        assert torch.equal(tensor, kept[best - 1][name])


def test_an_epoch_without_a_value_is_not_the_best(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, epochs=2)
    plan, worker_input = plan_for(spec, tmp_path)
    trainer = ScoredTrainer(worker_input, single_process(spec), lambda _: None)
    trainer.scores = iter([0.5, math.nan])
    trainer.run()
    trained = load_best_checkpoint(worker_input.checkpoint_folder, plan.module, epochs=2)
    assert trained.best.epoch == 1


def test_patience_counts_an_equal_value_as_no_improvement(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, epochs=9, patience=2, monitor="loss")
    _, worker_input = plan_for(spec, tmp_path)
    trainer = ScoredTrainer(worker_input, single_process(spec), lambda _: None)
    trainer.metric, trainer.scores = "validation_loss", iter([0.5, 0.4, 0.4, 0.4, 0.3])
    trainer.run()
    assert [epoch["validation_loss"] for epoch in trainer.progress.epochs] == [0.5, 0.4, 0.4, 0.4]
    assert trainer.progress.best is not None
    assert trainer.progress.best.epoch == 4  # of equal epochs the last one


def test_patience_ends_a_run_without_improvement(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, epochs=9, patience=2)
    _, worker_input = plan_for(spec, tmp_path)
    events: list[TrainEvent] = []
    trainer = ScoredTrainer(worker_input, single_process(spec), events.append)
    trainer.scores = iter([0.5, 0.8, 0.7, 0.6, 0.9])
    trainer.run()
    done = [event for event in events if isinstance(event, EpochCompleted)]
    assert [event.ended_early for event in done] == [False, False, False, True]
    # A second start finds nothing left to do.
    again = Trainer(worker_input, single_process(spec), events.append)
    again.run()
    assert [event for event in events if isinstance(event, EpochCompleted)] == done


@pytest.mark.parametrize("decision", ["stop", "abort"])
def test_the_driver_decides_after_an_epoch(
    stripes: Path, tmp_path: Path, decision: Decision
) -> None:
    spec = small_spec(stripes, epochs=4)
    _, worker_input = plan_for(spec, tmp_path)
    events: list[TrainEvent] = []

    def run(decide: Callable[[int], Decision]) -> list[int]:
        events.clear()
        context = single_process(spec)
        Trainer(worker_input, context, events.append, await_decision=decide).run()
        return [len(event.epochs) for event in events if isinstance(event, DecisionRequested)]

    assert run(lambda epoch: decision if epoch == 2 else "continue") == [1, 2]
    progress = CheckpointStore(worker_input.checkpoint_folder).progress()
    assert progress is not None
    assert (progress.epoch, progress.ended) == (2, decision == "stop")
    # A second start asks again first; a run that was stopped stays so, another one goes on.
    again = run(lambda _: "continue")
    assert again == ([2] if decision == "stop" else [2, 3, 4])


def test_a_loss_that_is_not_finite_stops_with_step_images_and_checkpoint(
    stripes: Path, tmp_path: Path
) -> None:
    spec = small_spec(stripes, checkpoint_steps=2)
    _, worker_input = plan_for(spec, tmp_path)
    events: list[TrainEvent] = []

    class DivergingTrainer(Trainer):
        def step(self, *arguments: Any) -> torch.Tensor:
            loss = super().step(*arguments)
            return loss * math.nan if self.progress.total_steps == 5 else loss

    trainer = DivergingTrainer(worker_input, single_process(spec), events.append)
    trainer.run()
    stopped = events[-1]
    assert isinstance(stopped, LossNotFinite)
    per_epoch = trainer.sampler.steps_per_epoch
    assert (stopped.epoch, stopped.step) == (5 // per_epoch + 1, 5 % per_epoch + 1)
    rows = trainer.sampler.rows(5 // per_epoch, 5 % per_epoch)
    assert stopped.images == tuple(worker_input.train.uris[row] for row in rows)
    assert stopped.checkpoint == "step-000000004.safetensors"
    _, advice = describe_stop(stopped, worker_input).split(" is not a finite number. ")
    assert advice.startswith(f"Lower --learning-rate ({spec.learning_rate:g}), or set --max-grad")
    assert stopped.images[0] in advice
    assert stopped.checkpoint in advice


def test_frozen_stages_are_unchanged_until_they_are_unfrozen(stripes: Path, tmp_path: Path) -> None:
    spec = small_spec(stripes, epochs=3, name="unfreezing")
    # `freeze` asks for weights worth keeping; the kit starts from random ones.
    spec = spec.model_copy(update={"freeze": "backbone", "unfreeze": ("1:1", "2:all")})
    plan, worker_input = plan_for(small_spec(stripes), tmp_path)
    worker_input = dataclasses.replace(worker_input, spec=spec)
    before = {name: value.clone() for name, value in plan.module.state_dict().items()}
    moved: list[set[str]] = []

    class WatchedTrainer(Trainer):
        def finish_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
            now = self.model.module.state_dict()
            moved.append({name for name, old in before.items() if not torch.equal(now[name], old)})
            super().finish_epoch(epoch, metrics)

    WatchedTrainer(worker_input, single_process(spec), lambda _: None).run()
    head = {"classifier.4.weight", "classifier.4.bias"}
    assert moved[0] == head
    assert moved[1] == head | {"classifier.2.weight", "classifier.2.bias"}
    assert moved[2] == set(before)


def test_data_too_large_for_the_disk_are_decoded_in_every_epoch(
    stripes: Path, tmp_path: Path
) -> None:
    spec = small_spec(stripes, **RICH)
    kept, _ = train_in_process(spec, tmp_path / "kept")
    decoded, _ = train_in_process(spec, tmp_path / "decoded", max_disk_fraction=0.0)
    assert decoded.losses == pytest.approx(kept.losses, rel=SAME_LOSS)
    assert not (tmp_path / "decoded/cache").exists()


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        ("alexnet", 64),
        ("zfnet", 64),
        ("googlenet", 32),
        pytest.param("vgg11", 32, marks=pytest.mark.long),
        ("resnet18", 32),
        ("mobilenet_v3_small", 32),
    ],
)
def test_the_well_known_networks_take_a_few_steps(
    stripes: Path, tmp_path: Path, architecture: str, size: int
) -> None:
    # Plain SGD: the state of another optimizer is gigabytes here, and written with each checkpoint.
    changes = {"optimizer": "sgd", "momentum": 0.0, "batch_size": 16, "learning_rate": 1e-4}
    spec = small_spec(stripes, architecture=architecture, image_size=size, epochs=1, **changes)
    trained, _ = train_in_process(spec, tmp_path)
    assert len(trained.losses) == 2
    assert all(math.isfinite(loss) for loss in trained.losses)
