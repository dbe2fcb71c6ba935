"""A teacher in training: what it adds to the loss, what it leaves alone, and which are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from eagleray.core.errors import UserError
from eagleray.core.settings import Settings
from eagleray.imaging import named_contract
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.manifest import Quantization
from eagleray.models.network import ImageNetwork
from eagleray.models.package import ModelPackage, write_package
from eagleray.registry.registry import Registry
from eagleray.tasks import Multiclass, Regression
from eagleray.training.loop.distillation import Teacher
from eagleray.training.loop.distributed import single_process
from eagleray.training.plan import TrainPlan, describe_plan, make_plan
from eagleray.training.registration.packaging import finish_model
from tests.support.mlflow_database import prepare_home
from tests.support.models import lenet_module, small_package
from tests.support.numerics import SAME_LOSS
from tests.support.training import DyingTrainer, KilledError, plan_for, small_spec, write_stripes

pytestmark = pytest.mark.numerical

TASK = Multiclass(labels=("horizontal", "vertical"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry has teachers of several kinds."""
    folder = prepare_home(tmp_path_factory.mktemp("home"))
    registry = Registry(Settings(home=folder))
    registry.register(teacher_package(), alias="best")
    registry.register(teacher_package(seed=1))
    turned = Multiclass(labels=("vertical", "horizontal"))
    registry.register(small_package(name="turned", task=turned))
    registry.register(small_package(name="digits"))
    return folder


def teacher_package(side: int = 32, seed: int = 0) -> ModelPackage:
    """A teacher of gray images; the one of 48 pixels is a small residual network."""
    if side == 32:
        return small_package(name="wise", task=TASK, module=lenet_module(2, seed))
    torch.manual_seed(seed)
    architecture = Architecture(name="resnet20", in_channels=1, num_outputs=2)
    return small_package(
        name="wise",
        task=TASK,
        architecture=architecture,
        module=build(architecture).eval(),
        contract=named_contract("whole-image", size=side, color="gray"),
    )


def plan(data: Path, home: Path, **changes: Any) -> TrainPlan:
    return make_plan(small_spec(data, **changes), Settings(home=home))


def batch(side: int = 32, count: int = 4) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 1), np.uint8)
    return torch.from_numpy(pixels)


def test_the_loss_is_the_weighted_sum_of_labels_and_teacher() -> None:
    package, images = teacher_package(), batch()
    spec = small_spec("d", teacher="wise/1", teacher_weight=0.7, teacher_temperature=3.0)
    outputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    hard = functional.cross_entropy(outputs, torch.tensor([0, 1, 1, 0]), reduction="none")
    taught = ImageNetwork(package.build_module(), package.contract)(images)
    p, q = (taught / 3).softmax(dim=1), (outputs / 3).softmax(dim=1)
    by_hand = 0.3 * hard + 0.7 * 9 * (p * (p / q).log()).sum(dim=1)
    found = Teacher(package, spec, TASK, CPU).teach(hard, outputs, [images])
    assert torch.allclose(found, by_hand, atol=1e-5)


def test_only_the_student_has_gradients_and_the_teacher_stays_as_it_is() -> None:
    package = teacher_package(side=48)  # it has statistics that training mode would change
    spec = small_spec("d", teacher="wise/1")
    teacher = Teacher(package, spec, TASK, CPU)
    outputs = torch.zeros(4, 2, requires_grad=True)
    teacher.teach(torch.zeros(4), outputs, [batch()]).sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert float(outputs.grad.abs().sum()) > 0
    network = teacher._network
    assert not network.training
    assert all(one.grad is None and not one.requires_grad for one in network.parameters())
    before = package.build_module().state_dict()
    for name, tensor in network.get_submodule("module").state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_teacher_sees_the_images_in_its_own_size_and_normalisation() -> None:
    package, images = teacher_package(side=48), batch(side=32)
    teacher = Teacher(package, small_spec("d", teacher="wise/1"), TASK, CPU)
    resized = functional.interpolate(
        images.permute(0, 3, 1, 2).float(), (48, 48), mode="bilinear", antialias=True
    )
    mean, std = package.contract.mean[0], package.contract.std[0]
    with torch.no_grad():
        expected = package.build_module()((resized / 255 - mean) / std)
    assert torch.allclose(teacher.outputs([images]), expected, atol=1e-4)


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(
    stripes: Path, home: Path, tmp_path: Path
) -> None:
    spec = small_spec(stripes, teacher="wise@best", mixup=0.2, checkpoint_steps=2)
    _, worker_input = plan_for(spec, home)

    def trainer(name: str, **changes: Any) -> DyingTrainer:
        changes["checkpoint_folder"] = str(tmp_path / name)
        own = dataclasses.replace(worker_input, **changes)
        return DyingTrainer(own, single_process(own.spec), lambda _: None)

    def losses(name: str, **changes: Any) -> list[float]:
        finished = trainer(name, **changes)
        finished.run()
        return [epoch["train_loss"] for epoch in finished.progress.epochs]

    whole, stopped = losses("whole"), trainer("stopped")
    stopped.dies_at = 5
    with pytest.raises(KilledError):
        stopped.run()
    assert losses("stopped") == pytest.approx(whole, rel=SAME_LOSS)
    assert losses("alone", teacher=None) != pytest.approx(whole, rel=1e-3)


def test_the_version_of_an_alias_is_named_in_the_specification(stripes: Path, home: Path) -> None:
    planned = plan(stripes, home, teacher="wise@best")
    assert planned.spec.teacher == "wise/1"
    assert planned.teacher is not None
    assert "taught by wise/1, a lenet5" in describe_plan(planned)
    assert plan(stripes, home, parent="wise@best", architecture=None).spec.parent == "wise/1"


def test_the_lineage_of_the_package_names_the_teacher(
    stripes: Path, home: Path, tmp_path: Path
) -> None:
    planned = plan(stripes, home, teacher="wise/2")
    finished = finish_model(planned, planned.module, cache_folder=tmp_path, mlflow_run=None)
    assert planned.teacher is not None
    assert finished.package.manifest.lineage.teacher == planned.teacher.digest


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": "turned/1"}, r"labels in another order \(vertical, horizontal instead of"),
        ({"teacher": "digits/1"}, "labels with zero, one, two and without horizontal, vertical"),
        ({"teacher": "nobody@best"}, "nobody"),
        ({"teacher": "wise/9"}, "9"),
        (
            {"teacher": "random:resnet18"},
            "not a registered version, which a teacher must be; write",
        ),
        ({"teacher": "wise/1", "architecture": "resnet20"}, "input 32 x 32 gray instead of 32"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    stripes: Path, home: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        plan(stripes, home, **changes)
    assert "\n" not in str(caught.value)


def test_a_package_in_a_folder_is_no_teacher(stripes: Path, home: Path, tmp_path: Path) -> None:
    write_package(teacher_package(), str(tmp_path / "folder"))
    with pytest.raises(UserError, match="eagleray models register"):
        plan(stripes, home, teacher=str(tmp_path / "folder"))


def test_a_quantized_version_does_not_teach(
    stripes: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantization = Quantization(method="static", calibration_digest="0" * 64, num_images=32)
    int8 = SimpleNamespace(manifest=SimpleNamespace(quantization=quantization))
    monkeypatch.setattr(Registry, "load", lambda *_: int8)
    with pytest.raises(UserError, match="wise/1 is quantized and cannot teach; name the version"):
        plan(stripes, home, teacher="wise/1")


def test_weight_and_temperature_need_a_teacher() -> None:
    with pytest.raises(UserError, match="are those of a teacher: set teacher, too"):
        small_spec("d", teacher_temperature=2.0)


def test_a_regression_learns_from_a_teacher_of_its_own_unit() -> None:
    task = Regression(mean=1.0, std=2.0)
    package = small_package(task=Regression(mean=0.0, std=1.0), module=lenet_module(1))
    spec = small_spec("d", task="regression", teacher="wise/1", teacher_weight=1.0)
    value = ImageNetwork(package.build_module(), package.contract)(batch())
    found = Teacher(package, spec, task, CPU).teach(torch.zeros(4), torch.zeros(4, 1), [batch()])
    assert torch.allclose(found, ((value - 1) / 2).square().squeeze(1), atol=1e-6)
