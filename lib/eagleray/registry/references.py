"""Loads and verifies the model that a reference names.

digits@production            the version of the registry that an alias points to
digits/3                     a version of the registry
./models/digits              a folder (one that looks like name/3 is written ./name/3)
s3://bucket/models/digits    a package in an object store
random:resnet18              an architecture with random weights and ImageNet's labels
pretrained:resnet18          the same with published weights; `pretrained:resnet18/IMAGENET1K_V1`
pretrained:retinanet_resnet50_fpn_v2     a detector with published weights and COCO's labels
features:digits@production   the features before the last layer of any of these: an embedding
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings, read_settings
from eagleray.imaging import ImageContract
from eagleray.inference.verification import VerificationReport, verify_loaded, verify_package
from eagleray.io import storage
from eagleray.models.architectures import (
    TIMM_PREFIX,
    Architecture,
    architecture_for,
    architecture_names,
    default_contract,
    has_published,
    imagenet_labels,
    require_architecture,
    weights_entry,
)
from eagleray.models.building import build, build_pretrained
from eagleray.models.compositions import backbone_of
from eagleray.models.networks.features import features_of
from eagleray.models.package import Lineage, ModelPackage, create_package, read_package
from eagleray.models.published import find_published
from eagleray.registry.registry import ModelVersion, Registry
from eagleray.tasks import Multiclass, Task

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "LoadedModel",
    "find_version",
    "load_model",
    "load_parent",
    "require_version",
    "verify_model",
]

RANDOM_PREFIX, PRETRAINED_PREFIX, FEATURES_PREFIX = "random:", "pretrained:", "features:"

_BY_ALIAS = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)@([A-Za-z0-9_-]+)")
_BY_VERSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)/(\d+)")


class HasPackage(Protocol):
    """A model with its package."""

    @property
    def package(self) -> ModelPackage:
        """The verified package."""


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model package.

    Attributes:
        reference: The user's reference.
        package: The verified package.
        version: Number of the version in the registry; empty for a model that is not in it.
    """

    reference: str
    package: ModelPackage
    version: str = ""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.package.manifest.name


def load_model(reference: str, settings: Settings | None = None) -> LoadedModel:
    """Find, fetch and verify the model that a reference names.

    Raises:
        UnknownNameError: If there is no such model, version, alias or architecture.
        PackageError: If the package is refused.
        InputError: If the reference is not valid.
    """
    settings = settings or read_settings()
    if reference.startswith(FEATURES_PREFIX):
        named = load_model(reference.removeprefix(FEATURES_PREFIX), settings)
        return LoadedModel(reference, features_of(named.package))
    if reference.startswith(RANDOM_PREFIX):
        return LoadedModel(reference, _random(reference.removeprefix(RANDOM_PREFIX)))
    if reference.startswith(PRETRAINED_PREFIX):
        return LoadedModel(reference, _pretrained(reference.removeprefix(PRETRAINED_PREFIX)))
    if _BY_ALIAS.fullmatch(reference) or _BY_VERSION.fullmatch(reference):
        registry = Registry(settings)
        found = find_version(reference, registry)
        assert found is not None
        return LoadedModel(reference, registry.load(found), str(found.version))
    if storage.is_remote(reference) or storage.is_folder(reference):
        return LoadedModel(reference, read_package(reference))
    raise _unknown_reference(reference, settings)


def verify_model(reference: str, settings: Settings | None = None) -> VerificationReport:
    """Check the package that a reference names; a failed check does not end the others.

    Raises:
        UnknownNameError: If there is no such model, version, alias or architecture.
        InputError: If the reference is not valid.
    """
    settings = settings or read_settings()
    if reference.startswith((RANDOM_PREFIX, PRETRAINED_PREFIX, FEATURES_PREFIX)):
        return verify_loaded(load_model(reference, settings).package)
    if _BY_ALIAS.fullmatch(reference) or _BY_VERSION.fullmatch(reference):
        registry = Registry(settings)
        found = find_version(reference, registry)
        assert found is not None
        with registry.location(found) as folder:
            return verify_package(folder, expected_digest=found.digest or None)
    if storage.is_remote(reference) or storage.is_folder(reference):
        return verify_package(reference)
    raise _unknown_reference(reference, settings)


def load_parent(model: HasPackage, settings: Settings | None = None) -> LoadedModel | None:
    """Load the version that a model was made from.

    Args:
        model: A model and its package.
        settings: The settings that name the registry; None reads the environment.

    Returns:
        The version; None if the model's lineage names none that the registry has.

    Raises:
        PackageError: If its package is refused.
    """
    digest = model.package.manifest.lineage.parent
    if digest is None:
        return None
    registry = Registry(settings)
    found = registry.version_of_package(digest)
    if found is None:
        return None
    return LoadedModel(found.reference, registry.load(found), str(found.version))


def find_version(reference: str, registry: Registry) -> ModelVersion | None:
    """Return the version of NAME@ALIAS or NAME/VERSION; None if a reference is neither.

    Raises:
        UnknownNameError: If there is no such model, version or alias.
    """
    if by_alias := _BY_ALIAS.fullmatch(reference):
        return registry.get(by_alias[1], alias=by_alias[2])
    if by_version := _BY_VERSION.fullmatch(reference):
        return registry.get(by_version[1], version=int(by_version[2]))
    return None


def require_version(reference: str, registry: Registry) -> ModelVersion:
    """Return the version of NAME@ALIAS or NAME/VERSION.

    Raises:
        UnknownNameError: If there is no such model, version or alias.
        InputError: If the reference is neither; the message says what to write.
    """
    found = find_version(reference, registry)
    if found is not None:
        return found
    if reference in registry.names():
        raise _which_version(reference)
    raise InputError(
        f"{reference!r} is not a registered version; write NAME@ALIAS or NAME/VERSION, and "
        "register a package first by `eagleray models register`."
    )


def _which_version(name: str) -> InputError:
    return InputError(
        f"Which version of {name!r}? Write {name}@ALIAS or {name}/NUMBER; "
        f"`eagleray models list {name}` shows them."
    )


def _unknown_reference(reference: str, settings: Settings) -> InputError | UnknownNameError:
    if reference.startswith(("./", "../", "/")):
        return InputError(f"There is no folder {reference}; check the path.")
    names = Registry(settings).names()
    if reference in names:
        return _which_version(reference)
    if reference in architecture_names():
        published = f", pretrained:{reference} with published ones" * has_published(reference)
        return InputError(
            f"No model is named {reference!r}, but an architecture is: random:{reference} runs it "
            f"with random weights{published}."
        )
    return UnknownNameError(
        "model",
        reference,
        names,
        hint="A model is NAME@ALIAS, NAME/VERSION, a folder, a URI, or random:ARCHITECTURE.",
    )


def _random(name: str) -> ModelPackage:
    require_architecture(name)
    contract = default_contract(name)
    task = _published_task(name, 1000)
    architecture = architecture_for(name, contract, task.num_outputs)
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same reference gives the same predictions every time
        module = build(architecture).eval()
    return _in_memory(architecture, contract, module, task, note="random weights, seed 0")


def _pretrained(text: str) -> ModelPackage:
    if backbone_of(text) is not None:
        raise InputError(
            f"Weights of {text!r} are published of its classifier alone: train it from them with "
            f"--architecture {text} --pretrained, or name a network with published weights of its "
            "own, such as pretrained:retinanet_resnet50_fpn_v2 or pretrained:deeplabv3_resnet50."
        )
    if text.startswith(TIMM_PREFIX):
        name, weights = text, "DEFAULT"
    else:
        name, _, weights = text.partition("/")
    weights = weights or "DEFAULT"
    module, architecture = build_pretrained(name, weights=weights)
    contract = default_contract(name, weights=weights)
    task = _published_task(name, architecture.num_outputs, weights)
    return _in_memory(architecture, contract, module, task, note=f"published weights {weights}")


def _published_task(name: str, num_outputs: int, weights: str = "DEFAULT") -> Task:
    """Return the task of a network's published weights.

    Args:
        name: Name of the architecture.
        num_outputs: Number of labels of a classifier.
        weights: Name of the weights entry.
    """
    published = find_published(name)
    if published is None:
        return Multiclass(labels=_labels_for(num_outputs))
    return published.make_task(weights_entry(name, weights).meta["categories"])


def _labels_for(num_outputs: int) -> tuple[str, ...]:
    """Return ImageNet's labels if their number fits, else numbers."""
    labels = imagenet_labels()
    if num_outputs == len(labels):
        return tuple(labels)
    return tuple(str(index) for index in range(num_outputs))


def _in_memory(
    architecture: Architecture,
    contract: ImageContract,
    module: nn.Module,
    task: Task,
    *,
    note: str,
) -> ModelPackage:
    # Without the time of creation the same reference has the same digest, so that a job that names
    # it can be resumed.
    lineage = Lineage.now(note=note).model_copy(update={"created": "1970-01-01T00:00:00+00:00"})
    return create_package(
        name=architecture.name.replace("/", "-"),
        task=task,
        architecture=architecture,
        contract=contract,
        module=module,
        lineage=lineage,
    )
