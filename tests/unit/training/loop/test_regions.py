"""Training of Mask R-CNN: the same on two workers, and in a package with its form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.tasks import Instance
from eagleray.training.plan import make_plan
from eagleray.training.registration.packaging import finish_model
from tests.support.numerics import SAME_LOSS
from tests.support.segmented import nucleus_spec, write_nuclei
from tests.support.training import plan_for, train_as_two, train_in_process

pytestmark = pytest.mark.numerical

TINY = "maskrcnn/tests.support.detection:TinyMaps"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.detection,tests.support.segmented")


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nuclei(tmp_path_factory.mktemp("data") / "nuclei")


def region_spec(data: Path, **changes: Any) -> Any:
    return nucleus_spec(data, **{"architecture": TINY, "learning_rate": 0.001, **changes})


@pytest.mark.long
def test_two_workers_have_the_losses_of_one(nuclei: Path, tmp_path: Path) -> None:
    spec = region_spec(nuclei, horizontal_flip=True, random_resized_crop=0.5, mosaic=0.4, epochs=1)
    one, _ = train_in_process(spec, tmp_path / "one")
    two = train_as_two(spec, tmp_path / "two")
    assert two.losses == pytest.approx(one.losses, rel=SAME_LOSS)


def test_the_package_of_a_run_has_the_form_of_its_network(nuclei: Path, tmp_path: Path) -> None:
    spec = region_spec(nuclei, epochs=1)
    plan, _ = plan_for(spec, tmp_path)
    assert isinstance(plan.task, Instance)
    assert plan.architecture.num_outputs == 1
    train_in_process(spec, tmp_path, plan=plan)
    finished = finish_model(plan, plan.module, cache_folder=tmp_path / "cache", mlflow_run=None)
    task = finished.package.task
    assert isinstance(task, Instance)
    assert task.regions is not None
    assert task.regions.size == (32, 32)
    assert 0 <= finished.evaluation.metrics["map_50"] <= 1


def test_a_loss_of_pixels_is_refused_before_the_run(nuclei: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cross_entropy needs `labels` .* such as panoptic/resn"):
        make_plan(region_spec(nuclei, loss="cross_entropy"), Settings(home=tmp_path))
