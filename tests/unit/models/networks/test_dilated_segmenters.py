"""DeepLabv3 and LR-ASPP on dilated classifiers."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet50

from eagleray.core.errors import InputError
from eagleray.models.architectures import Architecture
from eagleray.models.building import build, check_fits, find_head, make_backbone, replace_head
from eagleray.models.networks.dilated_segmenters import LRASPP
from eagleray.models.networks.feature_maps import extract_feature_maps, feature_levels
from eagleray.tasks import Semantic
from eagleray.tasks.base import LossOptions

pytestmark = pytest.mark.numerical

TASK = Semantic(labels=("background", "cat", "dog"))


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(Architecture(name=name, num_outputs=3)).eval()


@pytest.mark.parametrize(
    "name", ["deeplabv3/resnet18", "deeplabv3/resnet20", "lraspp/mobilenet_v3_small"]
)
@pytest.mark.parametrize("size", [(64, 64), (75, 100)])
def test_every_pixel_has_logits(name: str, size: tuple[int, int]) -> None:
    module = network(name)
    with torch.no_grad():
        assert module(torch.randn(2, 3, *size)).shape == (2, 3, *size)
    assert find_head(module, 3) == ("head.4" if name.startswith("deeplab") else "head")
    check_fits(Architecture(name=name, num_outputs=3), *size, task=TASK)


def test_a_dilated_classifier_is_the_one_of_torchvision() -> None:
    torch.manual_seed(0)
    backbone = make_backbone("resnet50")
    level = feature_levels(backbone)[-1]
    dilated = extract_feature_maps(backbone, [level], max_stride=16).eval()
    theirs = resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    theirs.load_state_dict(dilated.state_dict(), strict=False)
    found: list[torch.Tensor] = []
    theirs.layer4.register_forward_hook(lambda _, __, output: found.append(output))
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        theirs(images)
        maps = dilated(images)[level.layer]
    assert maps.shape == (1, 2048, 6, 4)
    torch.testing.assert_close(maps, found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vgg11", "densenet121", "regnet_y_400mf"])
def test_the_deepest_map_of_a_dilated_classifier_has_the_stride_16(name: str) -> None:
    backbone = make_backbone(name)
    levels = feature_levels(backbone)[-2:]
    maps = extract_feature_maps(backbone, levels, initialize=False, max_stride=16).eval()
    with torch.no_grad():
        found = maps(torch.zeros(1, 3, 128, 96))
    assert [found[level.layer].shape[2:] for level in levels] == [(8, 6), (8, 6)]


def test_a_classifier_that_cannot_be_dilated_is_refused() -> None:
    with pytest.raises(InputError, match=r"convnext_tiny cannot be dilated .* unet/convnext_tiny"):
        build(Architecture(name="lraspp/convnext_tiny"))
    with pytest.raises(InputError, match="vit_b_16 cannot be a backbone"):
        build(Architecture(name="deeplabv3/vit_b_16"))


@pytest.mark.parametrize("name", ["deeplabv3/resnet20", "lraspp/resnet20"])
def test_a_batch_of_one_image_can_be_learned_from(name: str) -> None:
    module = build(Architecture(name=name, num_outputs=3)).train()
    images = torch.randn(1, 3, 32, 32)
    assert module(images).isfinite().all()
    assert torch.equal(module(images), module(images))  # no dropout
    added = [layer for path, layer in module.named_modules() if not path.startswith("backbone")]
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in added)


def test_other_labels_replace_the_last_layer_only() -> None:
    module = network("deeplabv3/resnet20")
    before = {name: value.shape for name, value in module.state_dict().items()}
    replace_head(module, 3, 5)
    after = {name: value.shape for name, value in module.state_dict().items()}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"head.4.weight", "head.4.bias"}


def test_one_layer_on_both_maps_is_the_sum_of_two() -> None:
    module = network("lraspp/resnet20")
    assert isinstance(module, LRASPP)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        maps = module.backbone(images)
        low, high = maps.values()
        of_high = module.features(high) * module.scale(high)
        of_high = torch.nn.functional.interpolate(of_high, low.shape[2:], mode="bilinear")
        width = low.shape[1]
        weight, bias = module.head.weight, module.head.bias
        first = torch.nn.functional.conv2d(low, weight[:, :width], bias)
        second = torch.nn.functional.conv2d(of_high, weight[:, width:])
        expected = torch.nn.functional.interpolate(first + second, (32, 32), mode="bilinear")
        torch.testing.assert_close(module(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix", ["deeplabv3", "lraspp"])
def test_a_network_learns_what_four_images_show(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGLERAY_EXTENSIONS", "tests.support.detection")
    module = network(f"{prefix}/tests.support.detection:TinyMaps").train()
    images, targets = 0.3 * torch.rand(4, 3, 64, 64), torch.zeros(4, 64, 64, dtype=torch.uint8)
    for place in range(4):
        rows, columns = slice(8 * place, 8 * place + 24), slice(30 - 4 * place, 54 - 4 * place)
        label = 1 + place % 2
        images[place, label, rows, columns] = 1
        targets[place, rows, columns] = label
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    losses = TASK.image_losses(LossOptions(), ())
    for _ in range(60):
        optimizer.zero_grad()
        loss = losses(module(images), targets).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        found = module.eval()(images).argmax(dim=1)
    for label in range(3):
        both = (found == label) & (targets == label)
        either = (found == label) | (targets == label)
        assert both.sum() / either.sum() > 0.8
