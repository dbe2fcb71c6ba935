"""Trained models are registered, judged, and take an alias if they deserve it; without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import InputError
from eagleray.io import storage
from eagleray.training.job import open_run
from eagleray.training.loop.distributed import single_process
from eagleray.training.loop.trainer import Trainer
from eagleray.training.monitor import Monitor
from eagleray.training.prepare import TrainJob, open_job
from eagleray.training.registration.register import RegisteredModel, register_model
from eagleray.training.registration.rivals import Contender, NotComparableError
from eagleray.training.result import load_best_checkpoint
from eagleray.training.runs import Run
from eagleray.training.spec import TrainSpec
from eagleray.training.worker_input import make_worker_input
from tests.support.models import registry_in
from tests.support.training import small_spec, write_stripes

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes", 60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registration")
    registry_in(folder)
    return folder


def good_spec(data: Path, **changes: Any) -> TrainSpec:
    return small_spec(data, **{"epochs": 6, "test_fraction": 0.4, **changes})


class Trained:
    """A run that is trained in this process and then registered."""

    def __init__(self, spec: TrainSpec, home: Path, **options: Any) -> None:
        settings = registry_in(home).settings
        self.job: TrainJob = open_job(spec, settings, **options)
        self.run: Run = open_run(self.job)[0]
        folder = Path(self.run.folder)
        worker_input = make_worker_input(
            self.job.plan,
            run="run",
            checkpoints=str(folder / "checkpoints"),
            cache_folder=folder / "cache",
            s3=storage.S3Options(),
        )
        Trainer(worker_input, single_process(spec), lambda _: None).run()
        module = self.job.plan.module
        self.result = load_best_checkpoint(self.run.checkpoints, module, epochs=spec.epochs)
        self.tracked = self.job.registry.start_run(f"train {spec.name}")

    def register(self) -> RegisteredModel:
        for file in (self.run.spec_file, self.run.split_file):
            self.tracked.log_file(file)
        return register_model(self.job, self.job.plan, self.tracked, self.run, self.result)


def register(spec: TrainSpec, home: Path, **options: Any) -> RegisteredModel:
    return Trained(spec, home, **options).register()


def test_the_candidate_is_the_best_version_and_not_the_newest(stripes: Path, home: Path) -> None:
    register(good_spec(stripes, name="best", epochs=1, learning_rate=1e-3), home)
    lazy = register(good_spec(stripes, name="best", learning_rate=1e-9), home)
    assert lazy.did_not_learn
    assert lazy.alias.moved is False
    assert "did not learn; to move it, run: eagleray models alias best candidate 2" in (
        lazy.alias.reason
    )
    assert lazy.version.did_not_learn == lazy.did_not_learn
    assert lazy.as_json()["did_not_learn"] == list(lazy.did_not_learn)

    trained = Trained(good_spec(stripes, name="best", epochs=8), home)
    good = trained.register()
    assert (good.did_not_learn, good.alias.moved) == ((), True)
    assert good.version.aliases == ("candidate",)
    page = Path(trained.run.page("evaluation")).read_text()
    for text in ("Evaluation of best/3", "labels in order", "32 x 32 pixels, gray"):
        assert text in page

    same = register(good_spec(stripes, name="best", epochs=8), home)
    assert (same.did_not_learn, same.alias.moved) == ((), False)
    assert "stays at best/3: on the same 48 test images accuracy of best/4 is" in same.alias.reason
    assert trained.job.registry.alias_target("best", "candidate") == 3


def test_a_first_version_that_did_not_learn_leaves_the_alias_unset(
    stripes: Path, home: Path
) -> None:
    trained = Trained(good_spec(stripes, name="unset", learning_rate=1e-9), home)
    lazy = trained.register()
    assert lazy.version.aliases == ()
    assert lazy.alias.reason.startswith("unset@candidate stays unset: the run of unset/1 did not")
    page = Path(trained.run.page("evaluation")).read_text()
    assert "The run did not learn." in page
    named = register(good_spec(stripes, name="unset", learning_rate=1e-9), home, alias="candidate")
    assert named.did_not_learn
    assert named.version.aliases == ("candidate",)


def test_a_resumed_registration_makes_one_version_and_moves_the_alias_once(
    stripes: Path, home: Path
) -> None:
    trained = Trained(good_spec(stripes, name="again"), home)
    first = trained.register()
    trained.job.registry.register(first.tested.package, alias="candidate")
    again = trained.register()
    assert again.version.reference == first.version.reference == "again/1"
    assert trained.job.registry.alias_target("again", "candidate") == 2
    assert len(trained.job.registry.evaluations(again.version)) == 1


def test_the_old_candidate_is_measured_on_new_test_images_that_it_was_not_trained_on(
    stripes: Path, home: Path
) -> None:
    """The second run divides the data by another seed."""
    fields = {"name": "seeds", "test_fraction": 0.6}
    fast = good_spec(stripes, **fields, epochs=1, learning_rate=1e-3)
    first = register(fast, home, alias="candidate")
    second = register(good_spec(stripes, **fields, epochs=8, seed=5), home)
    digest = second.tested.record.data_digest
    (shared,) = [
        record
        for record in registry_in(home).evaluations(first.version)
        if record.data_digest == digest
    ]
    num_clean = len(second.tested.evaluation.rows) - shared.num_leaked
    assert 30 <= num_clean < 72
    assert not shared.counts
    assert second.tested.record.counts
    assert second.alias.moved
    moved = f"seeds@candidate points to seeds/2: on the same {num_clean} test images accuracy of"
    assert moved in second.alias.reason
    (_, change) = registry_in(home).history.changes("seeds", "candidate")
    assert change.evidence["images"] == num_clean
    assert change.evidence["value"] > change.evidence["current"]

    few = register(good_spec(stripes, name="seeds", test_fraction=0.2, seed=9), home)
    assert few.alias.moved is False
    assert "test images were used to train neither of them, and 30 are needed" in few.alias.reason
    assert "the same data and --seed, the same --split-file" in few.alias.reason


def test_test_images_that_the_parent_was_trained_on_are_reported_and_do_not_count(
    stripes: Path, home: Path
) -> None:
    register(good_spec(stripes, name="parent"), home)
    child = register(good_spec(stripes, name="child", parent="parent/1", seed=5), home)
    assert child.leakage
    assert "train split of parent/1, from which it descends" in child.warnings[-1]
    assert child.tested.record.num_leaked == len(child.leakage.rows)
    assert child.as_json()["test_images_leaked"] == len(child.leakage.rows)


def test_a_model_worse_than_its_parent_did_not_learn(stripes: Path, home: Path) -> None:
    register(good_spec(stripes, name="able", epochs=8), home)
    spoiled = register(
        good_spec(stripes, name="spoiled", parent="able/1", learning_rate=3.0, optimizer="sgd"),
        home,
    )
    assert any("that of its parent able/1 is" in reason for reason in spoiled.did_not_learn)


def test_a_parent_that_is_the_candidate_is_compared_once(stripes: Path, home: Path) -> None:
    parent = register(good_spec(stripes, name="once"), home).version
    other = register(good_spec(stripes, name="other", task="binary"), home).version
    trained = Trained(good_spec(stripes, name="once", parent="once/1"), home)
    child = trained.register()
    contender = Contender(
        trained.job, trained.job.plan, child.tested, Monitor("accuracy", "max"), child.leakage
    )
    with_parent = contender.compare_with_parent()
    assert with_parent is not None
    assert contender.compare_with(parent) is with_parent
    errors = []
    for _ in range(2):
        with pytest.raises(NotComparableError, match="it has another task") as caught:
            contender.compare_with(other)
        errors.append(caught.value)
    assert errors[0] is errors[1]


def test_an_alias_of_another_kind_of_model_is_refused_before_training(
    stripes: Path, home: Path
) -> None:
    register(good_spec(stripes, name="kind"), home)
    settings = registry_in(home).settings
    binary = good_spec(stripes, name="kind", task="binary")
    with pytest.raises(InputError, match="task binary instead of multiclass"):
        open_job(binary, settings, alias="candidate")
    assert open_job(binary, settings, alias="candidate", force=True).force
    changed = register(binary, home)
    assert "is another kind of model" in changed.alias.reason
    assert changed.alias.reason.endswith("eagleray models alias kind candidate 2 --force")
