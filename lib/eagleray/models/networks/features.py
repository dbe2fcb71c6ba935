"""Takes the features of a classifier: the same network without its head, as an embedding."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from eagleray.core.errors import InputError
from eagleray.models.building import drop_attributes, find_head, remove_head
from eagleray.models.package import ModelPackage, create_package
from eagleray.tasks.embedding import Embedding

if TYPE_CHECKING:
    from torch import nn

__all__ = ["features_of"]


def features_of(package: ModelPackage) -> ModelPackage:
    """Return the package of an embedding: the features that a network's head decides by.

    Its name is that of the model with `-features`, and it has its contract. Attributes, which join
    at the head, are not part of the features. The same package gives the same result on every
    machine, without golden images, so that a job that uses it can be resumed.

    Raises:
        PackageError: If the network is hosted.
        InputError: If the network has no head to leave out, such as a graph or an embedding.
    """
    manifest = package.manifest
    if manifest.architecture.removed_head:
        return package
    if package.graph is not None:
        raise InputError(
            f"{manifest.name} is a graph, of which no layer can be left out; name the version of "
            "PyTorch that it was made from."
        )
    package.require_pytorch()
    module = package.build_module()
    if manifest.architecture.num_attributes:
        module = drop_attributes(module)
    head = find_head(module, manifest.architecture.num_outputs)
    remove_head(module, head)
    dimension = _dimension(package, module, head)
    architecture = manifest.architecture.model_copy(
        update={
            "num_outputs": dimension,
            "num_attributes": 0,
            "channels": {
                layer: counts
                for layer, counts in manifest.architecture.channels.items()
                if layer != head
            },
            "removed_head": head,
        }
    )
    return create_package(
        name=f"{manifest.name}-features",
        task=Embedding(dimension=dimension),
        architecture=architecture,
        contract=package.contract,
        module=module,
        lineage=manifest.lineage.model_copy(update={"parent": package.digest}),
    )


def _dimension(package: ModelPackage, module: nn.Module, head: str) -> int:
    """Return the length of the features.

    Raises:
        InputError: If they are not one vector for each image.
    """
    import torch

    contract = package.contract
    features = None
    with torch.inference_mode(), contextlib.suppress(RuntimeError):  # it may need its last layer
        features = module(torch.zeros(1, contract.channels, *contract.size))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        raise InputError(
            f"The features of {package.manifest.architecture.name} cannot be taken: what its last "
            f"layer {head} gets is not one vector for each image."
        )
    return features.shape[1]
