"""The stages of networks: every parameter is in one, and which are frozen when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eagleray.core.errors import InputError
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.training.loop.optimizer import make_optimizer
from eagleray.training.loop.stages import (
    freeze_stages,
    num_frozen_stages,
    require_freezable,
    stages_of,
)
from tests.support.training import small_spec


def network(name: str, num_outputs: int = 7) -> nn.Module:
    return build(Architecture(name=name, num_outputs=num_outputs, in_channels=3))


FIRST_AND_LAST = {
    "lenet5": (4, "features", "classifier.4"),
    "zfnet": (8, "features.0", "classifier.6"),
    "resnet20": (11, "stem", "fc"),
    "resnet18": (6, "conv1", "fc"),
    "vgg11_bn": (11, "features.0", "classifier.6"),
    "googlenet": (13, "conv1", "fc"),
    "mobilenet_v3_small": (15, "features.0", "classifier.3"),
    "densenet121": (9, "features.conv0", "classifier"),
    "squeezenet1_1": (10, "features.0", "classifier.1"),
    "swin_t": (9, "features.0", "head"),
}


@pytest.mark.parametrize("name", FIRST_AND_LAST)
def test_every_parameter_is_in_one_stage_in_order_of_depth(name: str) -> None:
    module = network(name)
    stages = stages_of(module, 7)
    assert (len(stages), stages[0].name, stages[-1].name) == FIRST_AND_LAST[name]
    placed = [parameter for stage in stages for parameter in stage.parameters]
    assert sorted(placed) == sorted(dict(module.named_parameters()))
    assert all(stage.parameters for stage in stages)


def test_a_class_token_belongs_to_the_first_stage() -> None:
    module = build(Architecture(name="vit_b_16", num_outputs=7, image_size=32))
    stages = stages_of(module, 7)
    assert {"class_token", "conv_proj.weight"} <= set(stages[0].parameters)
    assert len(stages) == 14


def test_frozen_stages_keep_weights_and_statistics() -> None:
    module = network("resnet20").train()
    stages = stages_of(module, 7)
    freeze_stages(module, stages, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = make_optimizer(small_spec("d", optimizer="sgd"), module, stages)
    module(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    changed = {
        name for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }
    frozen = tuple(f"{module_name}." for stage in stages[:4] for module_name in stage.modules)
    assert changed
    assert not [name for name in changed if name.startswith(frozen)]
    assert any("running_mean" in name for name in changed)


@pytest.mark.parametrize(
    ("freeze", "unfreeze", "frozen"),
    [
        (0, (), [0, 0, 0, 0]),
        (2, (), [2, 2, 2, 2]),
        ("backbone", ("1:1", "3:all"), [5, 4, 4, 0]),
        (3, ("2:2",), [3, 3, 1, 1]),
    ],
)
def test_stages_are_unfrozen_by_schedule(
    freeze: int | str, unfreeze: tuple[str, ...], frozen: list[int]
) -> None:
    spec = small_spec("d", parent="p", epochs=4, freeze=freeze, unfreeze=unfreeze)
    assert [num_frozen_stages(spec, 6, epoch) for epoch in range(4)] == frozen


@pytest.mark.parametrize(
    ("freeze", "unfreeze", "sentence"),
    [
        (6, (), "freeze 6: the network has 5 stages before its head (conv1, layer1"),
        (2, ("1:3",), "unfreeze 1:3: only 2 stages are still frozen"),
        (2, ("1:2", "2:1"), "unfreeze 2:1: only 0 stages are still frozen"),
    ],
)
def test_an_impossible_freeze_is_refused_in_one_sentence(
    freeze: int, unfreeze: tuple[str, ...], sentence: str
) -> None:
    spec = small_spec("d", parent="p", epochs=9, freeze=freeze, unfreeze=unfreeze)
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        require_freezable(spec, stages_of(network("resnet18"), 7))
    assert sentence in str(caught.value)
