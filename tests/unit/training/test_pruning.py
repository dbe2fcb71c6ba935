"""Pruning: what is removed, what stays the same, and networks that cannot be pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from eagleray.core.errors import UserError
from eagleray.core.settings import Settings
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_loaded
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.cost import model_cost
from eagleray.models.package import ModelPackage, create_package, write_package
from eagleray.training.plan import TrainPlan, describe_plan, make_plan
from eagleray.training.pruning import Pruned, prune
from eagleray.training.registration.packaging import finish_model
from tests.support.models import CONTRACT, DIGITS, LINEAGE, golden_png, small_package
from tests.support.numerics import SAME_LOSS
from tests.support.training import (
    small_spec,
    train_in_process,
    train_until,
    write_stripes,
)

pytestmark = pytest.mark.numerical

RESNET = Architecture(name="resnet20", in_channels=1, num_outputs=3)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("data") / "stripes")


def resnet(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(RESNET)


def pruned_resnet(share: float = 0.3) -> Pruned:
    return prune(resnet(), RESNET, (32, 32), share)


def package_of(pruned: Pruned) -> ModelPackage:
    return create_package(
        name="narrow",
        task=DIGITS,
        architecture=pruned.architecture,
        contract=CONTRACT,
        module=pruned.module.eval(),
        lineage=LINEAGE,
        golden_images=[golden_png(0)],
    )


def plan(data: Path, home: Path, **changes: Any) -> TrainPlan:
    fields = {"architecture": None, **changes}
    return make_plan(small_spec(data, **fields), Settings(home=home))


def test_channels_that_do_nothing_go_first_and_nothing_changes() -> None:
    module = resnet().eval()
    first, norm, second = (
        module.get_submodule(f"stages.4.{name}") for name in ("conv1", "bn1", "conv2")
    )
    assert isinstance(first, torch.nn.Conv2d)
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert isinstance(second, torch.nn.Conv2d)
    idle = torch.tensor([0, 3, 5, 9, 11, 20])  # of the 32 between its convolutions
    with torch.no_grad():
        first.weight[idle] = 0.0
        norm.weight[idle] = 0.0
        norm.bias[idle] = 0.0
        second.weight[:, idle] = 0.0
    images = torch.randn(3, 1, 32, 32)
    expected = module(images)
    pruned = prune(module, RESNET, (32, 32), 0.01)
    assert pruned.architecture.channels == {
        "stages.4.conv1": (32, 26),
        "stages.4.bn1": (26, 26),
        "stages.4.conv2": (26, 32),
    }
    assert torch.allclose(pruned.module.eval()(images), expected, atol=1e-5)


def test_the_share_of_multiply_adds_is_removed_and_measured() -> None:
    pruned = pruned_resnet()
    assert pruned.multiply_adds_before == model_cost(RESNET, (32, 32)).multiply_adds
    assert pruned.multiply_adds == model_cost(pruned.architecture, (32, 32)).multiply_adds
    assert 0.6 <= pruned.multiply_adds / pruned.multiply_adds_before <= 0.7
    assert pruned.module.training
    assert {one.dtype for one in pruned.module.parameters()} == {torch.float32}


def test_the_same_weights_give_the_same_channels() -> None:
    one, other = pruned_resnet(), pruned_resnet()
    assert one.architecture == other.architecture
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name])


def test_a_pruned_package_is_verified_and_predicts() -> None:
    package = package_of(pruned_resnet())
    report = verify_loaded(package)
    assert report.passed, report.faults
    outcome = Predictor(package, precision="float32", engine="eager").predict([golden_png(0)])[0]
    assert outcome.prediction is not None
    expected = package.golden.images[0].outputs
    assert outcome.prediction.probabilities == pytest.approx(expected, abs=1e-4)


def test_training_starts_from_the_pruned_parent_and_its_channels_stay(
    stripes: Path, tmp_path: Path
) -> None:
    write_package(package_of(Pruned(resnet(), RESNET, 1, 1)), str(tmp_path / "whole"))
    spec = {"parent": str(tmp_path / "whole"), "prune": 0.3, "epochs": 2}
    planned = plan(stripes, tmp_path, **spec)
    assert planned.pruned is not None
    assert any(text.startswith("pruned from 40,") for text in describe_plan(planned))
    result, _ = train_in_process(
        small_spec(stripes, architecture=None, **spec), tmp_path, plan=planned
    )
    assert len(result.epochs) == 2
    finished = finish_model(planned, planned.module, cache_folder=tmp_path, mlflow_run=None)
    assert verify_loaded(finished.package).passed
    assert finished.package.manifest.architecture.channels
    assert finished.package.manifest.lineage.parent == planned.parent

    # The pruned version is a parent like any other, and can be pruned further.
    write_package(finished.package, str(tmp_path / "narrow"))
    child = plan(stripes, tmp_path, parent=str(tmp_path / "narrow"))
    assert child.architecture == planned.architecture
    assert child.pruned is None
    further = plan(stripes, tmp_path, parent=str(tmp_path / "narrow"), prune=0.2)
    assert further.pruned is not None
    assert further.pruned.multiply_adds_before == planned.pruned.multiply_adds
    assert further.pruned.multiply_adds <= 0.8 * planned.pruned.multiply_adds


def test_a_resumed_run_has_the_pruned_network(stripes: Path, tmp_path: Path) -> None:
    write_package(small_package(), str(tmp_path / "digits"))
    fields = {"architecture": None, "parent": str(tmp_path / "digits"), "prune": 0.3}
    spec = small_spec(stripes, **fields, checkpoint_steps=2)
    whole, _ = train_in_process(spec, tmp_path / "whole")
    train_until(spec, tmp_path / "stopped", 5)
    again, _ = train_in_process(spec, tmp_path / "stopped")  # it is planned and pruned anew
    assert again.losses == pytest.approx(whole.losses, rel=SAME_LOSS)


@pytest.mark.parametrize(
    ("architecture", "sentence"),
    [
        (Architecture(name="vit_b_32", image_size=32), "it has parameters outside of its layers"),
        (Architecture(name="convnext_tiny"), "its features.0.1 is a LayerNorm2d"),
        (Architecture(name="shufflenet_v2_x0_5"), "shufflenet_v2_x0_5 cannot be pruned"),
    ],
)
def test_networks_that_cannot_be_pruned_are_refused(
    architecture: Architecture, sentence: str
) -> None:
    small = architecture.model_copy(update={"num_outputs": 3})
    with pytest.raises(UserError, match=sentence) as caught:
        prune(build(small, initialize=False), small, (32, 32), 0.3)
    assert "\n" not in str(caught.value)


def test_pruning_needs_trained_weights() -> None:
    with pytest.raises(UserError, match="prune removes channels of trained weights"):
        small_spec("d", prune=0.3)
