"""Networks of torchvision that find objects or classes of pixels with published weights.

    retinanet_resnet50_fpn_v2     a detector of COCO's 80 labels
    deeplabv3_resnet50            a segmentation network of Pascal VOC's 20 labels and background

find_published(name)            how such a network is built, and what goes with its weights
published_names()               the names of all
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from eagleray.core.errors import InputError
from eagleray.imaging.contract import IMAGENET_MEAN, IMAGENET_STD
from eagleray.tasks import Detection, Semantic, Task

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PublishedNetwork", "find_published", "published_names", "require_trainable"]

_BACKGROUND, _UNUSED = "__background__", "N/A"


@dataclass(frozen=True, slots=True)
class PublishedNetwork:
    """A network of torchvision, and what goes with its published weights.

    Attributes:
        builder: Module and class of the network, which takes its name and the number of labels.
        task: The task of the published weights: `Detection` or `Semantic`.
        size: Side in pixels of the images of its contract.
        like: A network of Eagleray that is trained instead.
        trainable: Whether it can be trained on from its published weights.
        contract: Name of its image contract.
        mean: Mean of each channel, in units of full scale.
        std: Standard deviation of each channel, in units of full scale.
        settings: Settings of the task, as torchvision has them for these weights.
    """

    builder: tuple[str, str]
    task: type[Detection] | type[Semantic]
    size: int
    like: str
    trainable: bool = True
    contract: str = "letterbox"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    settings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def build(self, name: str, num_labels: int) -> nn.Module:
        """Build the network of a name with random weights."""
        module, kind = self.builder
        network = getattr(importlib.import_module(f"eagleray.models.networks.{module}"), kind)
        return cast("nn.Module", network(name, num_labels))

    def make_task(self, categories: list[str]) -> Task:
        """Return the task of the published weights.

        Args:
            categories: The names of the network's outputs, as torchvision publishes them.
        """
        if self.task is Semantic:
            labels = ["background" if name == _BACKGROUND else name for name in categories]
        else:
            labels = [name for name in categories if name not in (_BACKGROUND, _UNUSED)]
        return self.task.model_validate({"labels": tuple(labels), **self.settings})


def _objects(max_overlap: float, max_objects: int, min_score: float) -> Mapping[str, float]:
    return MappingProxyType(
        {"max_overlap": max_overlap, "max_objects": max_objects, "min_score": min_score}
    )


def _dense(network: str, like: str, max_overlap: float, max_objects: int, min_score: float) -> Any:
    return PublishedNetwork(
        ("published_detectors", network),
        Detection,
        size=800,
        like=like,
        settings=_objects(max_overlap, max_objects, min_score),
    )


def _two_stage(like: str, size: int = 800) -> PublishedNetwork:
    return PublishedNetwork(
        ("published_two_stage", "PublishedFasterRCNN"),
        Detection,
        size=size,
        like=like,
        trainable=False,
        settings=_objects(0.5, 100, 0.05),
    )


def _segmenter(like: str, *, trainable: bool = True) -> PublishedNetwork:
    return PublishedNetwork(
        ("published_segmenters", "PublishedSegmenter"),
        Semantic,
        size=520,
        like=like,
        trainable=trainable,
    )


_PUBLISHED: Mapping[str, PublishedNetwork] = {
    "retinanet_resnet50_fpn": _dense("PublishedRetinaNet", "retinanet/resnet50", 0.5, 300, 0.05),
    "retinanet_resnet50_fpn_v2": _dense("PublishedRetinaNet", "retinanet/resnet50", 0.5, 300, 0.05),
    "fcos_resnet50_fpn": _dense("PublishedFCOS", "fcos/resnet50", 0.6, 100, 0.2),
    "ssd300_vgg16": PublishedNetwork(
        ("published_detectors", "PublishedSSD"),
        Detection,
        size=300,
        like="ssdlite/vgg16",
        trainable=False,
        contract="whole-image",
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255, 1 / 255, 1 / 255),
        settings=_objects(0.45, 200, 0.01),
    ),
    "ssdlite320_mobilenet_v3_large": PublishedNetwork(
        ("published_detectors", "PublishedSSD"),
        Detection,
        size=320,
        like="ssdlite/mobilenet_v3_large",
        trainable=False,
        contract="whole-image",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        settings=_objects(0.55, 300, 0.01),
    ),
    "fasterrcnn_resnet50_fpn": _two_stage("fasterrcnn/resnet50"),
    "fasterrcnn_resnet50_fpn_v2": _two_stage("fasterrcnn/resnet50"),
    "fasterrcnn_mobilenet_v3_large_fpn": _two_stage("fasterrcnn/mobilenet_v3_large"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _two_stage("fasterrcnn/mobilenet_v3_large", 416),
    "fcn_resnet50": _segmenter("fcn8s/resnet50"),
    "fcn_resnet101": _segmenter("fcn8s/resnet101"),
    "deeplabv3_resnet50": _segmenter("deeplabv3/resnet50"),
    "deeplabv3_resnet101": _segmenter("deeplabv3/resnet101"),
    "deeplabv3_mobilenet_v3_large": _segmenter("deeplabv3/mobilenet_v3_large"),
    "lraspp_mobilenet_v3_large": _segmenter("lraspp/mobilenet_v3_large", trainable=False),
}


def published_names() -> list[str]:
    """Return the names of all networks."""
    return list(_PUBLISHED)


def find_published(name: str) -> PublishedNetwork | None:
    """Return the network of a name; None if it is another architecture."""
    return _PUBLISHED.get(name)


def require_trainable(name: str, task: Task, *, has_weights: bool) -> None:
    """Refuse to train a network that is made to predict with its published weights.

    Args:
        name: Name of an architecture, of any kind.
        task: The task that is trained; a network of another task is refused elsewhere.
        has_weights: Whether training starts from weights: published ones, or those of a parent.

    Raises:
        InputError: If it cannot be trained; the message names a network that can.
    """
    network = find_published(name)
    if network is None or not isinstance(task, network.task):
        return
    if not network.trainable:
        raise InputError(
            f"{name} predicts with its published weights and cannot be trained; name "
            f"{network.like} instead."
        )
    if not has_weights:
        raise InputError(
            f"{name} is trained from its published weights only, whose normalisation stays as it "
            f"is; add --pretrained or a parent, or name {network.like} to start from random ones."
        )
