"""The training job on a real Ray with two workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eagleray
from eagleray import TrainCallback
from eagleray.cli.console import Console
from eagleray.core.errors import InputError, JobFailedError, UserError
from eagleray.core.ray_session import Cluster
from eagleray.core.settings import Settings
from eagleray.data.split_file import read_split
from eagleray.inference.predictor import Predictor
from eagleray.registry.comparison import ComparedVersion, compare
from eagleray.registry.lineage import trace_lineage
from eagleray.registry.references import load_model
from eagleray.registry.registry import Registry
from eagleray.training.inspection import inspect_data, keep_duplicates_together
from eagleray.training.job import open_run, run_job
from eagleray.training.prepare import open_job
from eagleray.training.runs import Run
from eagleray.training.spec import TrainSpec
from eagleray.training.summary import TrainSummary
from tests.support.training import train_in_process

pytestmark = pytest.mark.numerical

Draw = Callable[[np.random.Generator], np.ndarray]


def horizontal(generator: np.random.Generator) -> np.ndarray:
    """Noise with a bright band somewhere in the upper half."""
    pixels = generator.integers(0, 80, (32, 32), dtype=np.uint8)
    top = generator.integers(1, 9)
    pixels[top : top + 6] += 150
    return pixels


def vertical(generator: np.random.Generator) -> np.ndarray:
    """The same with the band upright, in the left half."""
    return horizontal(generator).T.copy()


def write_class(folder: Path, draw: Draw, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(draw(generator)).save(folder / f"{index:03d}.png")


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    write_class(tmp_path / "stripes/horizontal", horizontal, 60, seed=0)
    write_class(tmp_path / "stripes/vertical", vertical, 60, seed=1)
    return tmp_path / "stripes"


def spec(folder: Path, **change: object) -> TrainSpec:
    fine = TrainSpec(
        data=str(folder), name="stripes", architecture="lenet5", epochs=10, batch_size=16, workers=2
    )
    return TrainSpec.model_validate({**fine.model_dump(), **change})


def train(cluster: Cluster, wanted: TrainSpec) -> TrainSummary:
    job = open_job(wanted, Settings(), alias="candidate")
    return run_job(job, cluster, Console(json_output=True))


def test_two_workers_learn_and_the_best_epoch_is_registered(
    cluster: Cluster, stripes: Path
) -> None:
    (stripes / "vertical" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    summary = train(cluster, spec(stripes))
    assert summary.tested.evaluation.metrics["accuracy"] >= 0.95
    assert summary.version.reference == "stripes/1"
    assert summary.version.aliases == ("candidate",)
    assert summary.registered.did_not_learn == ()
    bad = [fault.uri for fault in summary.skipped]
    failed = summary.tested.evaluation.num_failed
    assert len(bad) + failed == 1  # the broken one is said, whichever part it fell into

    alone, _ = train_in_process(spec(stripes), stripes.parent / "single_process")
    assert summary.result.losses[:20] == pytest.approx(alone.losses[:20], rel=1e-2)
    first, other = summary.result.epochs[0], alone.epochs[0]
    assert first["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=0.05)

    loaded = load_model("stripes@candidate")
    manifest = loaded.package.manifest
    assert manifest.task.labels == ("horizontal", "vertical")
    assert manifest.metrics["test_accuracy"] == summary.tested.evaluation.metrics["accuracy"]
    assert manifest.lineage.run == summary.version.run_id
    assert manifest.lineage.data_digest is not None
    predictor = Predictor(loaded.package, engine="eager")
    assert predictor.require_healthy().num_images == 4
    draw = horizontal(np.random.default_rng(99))
    Image.fromarray(draw).save(stripes.parent / "new.png")
    outcome = predictor.predict([(stripes.parent / "new.png").read_bytes()])[0]
    assert outcome.prediction is not None
    assert outcome.prediction.label == "horizontal"

    registry = Registry()
    history = registry.client.get_metric_history(summary.version.run_id, "validation_accuracy")
    assert [metric.step for metric in history] == list(range(1, 11))
    best = max(metric.value for metric in history)
    assert best == pytest.approx(summary.result.metrics["validation_accuracy"])
    assert summary.version.run_id is not None
    run = registry.client.get_run(summary.version.run_id)
    assert run.info.run_name == summary.run.name
    assert run.data.metrics["best_validation_accuracy"] == pytest.approx(best)
    assert run.data.params["contract"] == "whole-image"
    assert len(run.inputs.dataset_inputs) == 3
    pages = registry.artifacts.names(summary.version.run_id, "pages")
    assert pages == [f"pages/{name}.html" for name in ("data", "evaluation", "training")]
    require_pruned_and_taught(cluster, stripes, summary)


def require_pruned_and_taught(cluster: Cluster, stripes: Path, parent: TrainSummary) -> None:
    """Prune the parent on two workers, taught by the parent, and see what is recorded of it."""
    origin = {"parent": "stripes@candidate", "teacher": "stripes@candidate"}
    child = train(cluster, spec(stripes, **origin, architecture=None, prune=0.3, epochs=3))
    assert child.tested.evaluation.metrics["accuracy"] >= 0.9
    registry = Registry()
    manifest = registry.manifest(child.version)
    assert manifest.lineage.parent == manifest.lineage.teacher == parent.version.digest
    assert manifest.architecture.channels
    assert Predictor(child.tested.package, engine="eager").require_healthy().num_images == 4
    assert trace_lineage(registry, child.version).teacher == parent.version.reference
    assert child.version.run_id is not None
    run = registry.client.get_run(child.version.run_id).data
    assert (run.params["teacher"], run.tags["eagleray.teacher"]) == ("stripes/1", "stripes/1")
    assert run.params["teacher_digest"] == parent.version.digest
    before, after = (int(run.params[name]) for name in ("multiply_adds_before", "multiply_adds"))
    assert after <= 0.7 * before
    sides = [ComparedVersion.read(registry, one) for one in (parent.version, child.version)]
    cost = compare(registry, sides).as_json()["cost"]
    assert cost["multiply_adds"] == [before, after]
    assert cost["weights_bytes"][1] < cost["weights_bytes"][0]


class StopAfterTwo(TrainCallback):
    """Writes down what it is called with, and stops training after two epochs."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.steps: list[int] = []

    def on_train_start(self, run: Run) -> None:
        self.called.append(f"start {run.name}")

    def on_step(self, step: int, loss: float) -> None:
        assert 0 <= loss <= 2
        self.steps.append(step)

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        self.called.append(f"epoch {epoch}")
        assert "validation_accuracy" in metrics
        return epoch < 2

    def on_train_end(self, result: TrainSummary) -> None:
        self.called.append(f"end {result.version.reference}")


def test_train_in_python_with_a_callback_and_code_of_ones_own(
    cluster: Cluster, stripes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray  # not before the fixture has said how it is guarded

    # Ray runs already, so its workers lack the setting unless training brings it.
    own = "tests.support.own_code"
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", own)
    wanted = spec(
        stripes,
        architecture=f"{own}:TinyNet",
        image_size=32,
        transform=f"{own}:augment",
        loss=f"{own}:squared_error",
    )
    callback = StopAfterTwo()
    result = eagleray.train(wanted, callbacks=[callback])
    assert callback.called == [f"start {result.run.name}", "epoch 1", "epoch 2", "end stripes/1"]
    per_epoch = len(result.result.losses) // 2
    assert {per_epoch, 2 * per_epoch} <= set(callback.steps)
    assert result.result.ended_early
    assert len(result.result.epochs) == 2
    assert result.metrics == result.tested.evaluation.metrics
    package = load_model(result.version.reference).package
    assert package.manifest.architecture.name == f"{own}:TinyNet"
    assert "stopped: by a callback" in Path(result.run.page("training")).read_text()
    assert ray.is_initialized()  # a Ray that was there before is left


@pytest.mark.long
def test_the_number_of_workers_does_not_change_what_is_learned(
    cluster: Cluster, stripes: Path, tmp_path: Path
) -> None:
    wanted = spec(stripes, epochs=3, gradient_accumulation_steps=2)
    one, _ = train_in_process(wanted, tmp_path)
    # Weights that two workers share out among them learn what one worker learns.
    two = train(
        cluster, spec(stripes, epochs=3, gradient_accumulation_steps=2, strategy="fsdp")
    ).result
    assert two.losses == pytest.approx(one.losses, rel=1e-3)
    assert two.losses[-1] < two.losses[0]


def test_duplicates_are_kept_in_one_split_and_what_remains_is_warned_of(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for label, draw in (("horizontal", horizontal), ("vertical", vertical)):
        write_class(data / label, draw, 12, seed=len(label))
        for file in sorted((data / label).iterdir()):
            pixels = np.asarray(Image.open(file))
            colors = np.stack([pixels, pixels // 2, 255 - pixels], axis=2)
            for copy in range(3):
                Image.fromarray(colors).save(file.with_stem(f"{file.stem}-{copy}"))
            file.unlink()
    console = Console()
    apart = open_job(spec(data, workers=1), Settings(), alias="candidate")
    _, report = inspect_data(apart, cluster, console)
    leaks = [warning for warning in report.warnings if "the same bytes" in warning]
    assert leaks
    assert all("or keep them in one with --keep-duplicates-together" in leak for leak in leaks)
    colors_lost = [warning for warning in report.warnings if "takes gray images" in warning]
    assert "lenet5 takes gray images here, and 32 of 32 sampled training images" in colors_lost[0]

    wanted = spec(data, workers=1, keep_duplicates_together=True, class_weights="balanced")
    asked = open_job(wanted, Settings(), alias="candidate")
    job = keep_duplicates_together(asked, cluster, console)
    assert "72 images have some; train" in capsys.readouterr().err
    plan, report = inspect_data(job, cluster, console)
    assert report.leaked == {"validation": (0, 0), "test": (0, 0)}
    assert report.warnings == tuple(colors_lost)
    assert plan.split.digest == job.plan.split.digest != asked.plan.split.digest
    run, _ = open_run(job)
    assert read_split(run.split_file, job.plan.images).digest == plan.split.digest
    assert keep_duplicates_together(replace(job, run=run), cluster, console).run is run


def test_a_loss_that_is_not_finite_stops_with_a_sentence(cluster: Cluster, stripes: Path) -> None:
    wanted = spec(stripes, optimizer="sgd", learning_rate=1e30, epochs=3)
    with pytest.raises(JobFailedError, match="Lower --learning-rate") as caught:
        train(cluster, wanted)
    assert "\n" not in str(caught.value)
    runs = Registry().client.search_runs(
        [Registry().client.get_experiment_by_name("eagleray").experiment_id]
    )
    assert [run.info.status for run in runs] == ["FAILED"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "lenet"}, "Nearest: lenet5"),
        ({"architecture": "alexnet", "image_size": 32}, "cannot take images of 32 x 32"),
        ({"contract": "fsat"}, "Nearest: fast"),
        ({"task": "regression"}, "is not a number"),
        ({"data": "nowhere"}, "There is no folder or file nowhere"),
        ({"test_data": "nowhere"}, "There is no folder or file nowhere"),
        ({"test_fraction": 0.0}, "Nothing is left to test on"),
        ({"architecture": "lenet5", "pretrained": True}, "no published weights for 'lenet5'"),
    ],
)
def test_mistakes_are_reported_before_any_work(
    stripes: Path, change: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        open_job(spec(stripes, **change), Settings(), alias="candidate")
    assert sentence in str(caught.value)


def test_a_test_set_with_an_unknown_class_is_refused(stripes: Path, tmp_path: Path) -> None:
    write_class(tmp_path / "other/diagonal", horizontal, 3, seed=5)
    with pytest.raises(InputError, match="'diagonal' is not a label of this model"):
        open_job(spec(stripes, test_data=str(tmp_path / "other")), Settings(), alias="candidate")


def test_too_many_workers_are_refused(cluster: Cluster, stripes: Path) -> None:
    few = replace(cluster, num_cpus=1, num_gpus=0)
    with pytest.raises(InputError, match="workers: the 1 CPU cores here take 4, and 5 were"):
        train(few, spec(stripes, workers=5))


def test_a_missing_gpu_is_reported(cluster: Cluster, stripes: Path) -> None:
    without = replace(cluster, num_gpus=0)
    with pytest.raises(InputError, match="device: there is no GPU here"):
        train(without, spec(stripes, device="gpu"))
