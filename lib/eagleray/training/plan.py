"""From a specification to all that training needs, with everything checked that can be wrong.

    data -> parts -> task -> network and where it starts

Nothing here is expensive: an image is opened for the first time after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings
from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.labelled import (
    LabelledImages,
    join_images,
    read_labelled,
    require_enough,
)
from eagleray.data.split import (
    Split,
    describe_missing_splits,
    require_complete_split,
    require_no_splits,
    require_single_test_set,
    split_images,
)
from eagleray.data.split_file import read_split
from eagleray.imaging import ImageContract
from eagleray.io.tables import digest_table
from eagleray.models.architectures import (
    Architecture,
    architecture_for,
    build,
    build_pretrained,
    check_fits,
    default_contract,
    drop_attributes,
    join_attributes,
    replace_head,
    require_architecture,
)
from eagleray.models.attributes import (
    Attribute,
    fit_attributes,
    num_features,
    require_columns,
)
from eagleray.models.package import ModelPackage
from eagleray.registry.references import load_model
from eagleray.tasks import Task, make_task, task_class
from eagleray.training.spec import TrainSpec
from eagleray.training.stages import require_freezable, stages_of

__all__ = ["TrainPlan", "groups_of", "is_stratified", "make_plan", "plan_network"]

DEFAULT_ARCHITECTURE = "resnet18"


@dataclass(frozen=True)
class TrainPlan:
    """A specification with all that it names.

    Attributes:
        spec: What was asked.
        images: All labelled images but those of a test set of its own.
        split: Their parts.
        task: What the model answers.
        architecture: Of the network.
        contract: How images become its input.
        module: The network with the weights that training starts from.
        parent: Digest of the package that they are from, if any.
        attributes: That the network takes beside images, as the training part has them.
    """

    spec: TrainSpec
    images: LabelledImages
    split: Split
    task: Task
    architecture: Architecture
    contract: ImageContract
    module: nn.Module
    parent: str | None
    attributes: tuple[Attribute, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how the data were read, and what was skipped."""
        lacking = describe_missing_splits(self.images, has_own_test=self.spec.test_data is not None)
        return tuple(dict.fromkeys((*self.images.notes, *lacking, *self.split.test.notes)))

    @property
    def data_digest(self) -> str:
        """SHA-256 over the images with their labels, and the attributes that are learned from."""
        if not self.attributes:
            return self.images.digest
        columns = [self.images.attributes[attribute.name] for attribute in self.attributes]
        images = self.images
        return digest_table([images.uris, images.versions, images.labels, *columns])


def make_plan(spec: TrainSpec, settings: Settings, *, split_file: str | None = None) -> TrainPlan:
    """Check everything that can be wrong before expensive work starts.

    Args:
        spec: What is asked.
        settings: Where models are registered.
        split_file: Of a run that goes on, instead of a new split.

    Raises:
        UserError: With what to mend.
    """
    if spec.architecture is not None:
        require_architecture(spec.architecture)
    images = _read_data(spec, spec.data)
    split = _divide(spec, images, split_file or spec.split)
    task = make_task(spec.task, images.labels, images.uris)
    encode_targets(task, split.test)  # a test set of its own may have labels that nobody learns
    require_complete_split(split, spec.task)
    return plan_network(spec, settings, images, split, task)


def _read_data(spec: TrainSpec, location: str) -> LabelledImages:
    """Read labelled images as a specification says.

    Raises:
        InputError: They are not there, or too few.
    """
    images = read_labelled(
        location,
        uri_column=spec.column,
        label_column=spec.label_column,
        label_columns=spec.label_columns,
        separator=spec.separator,
        task=spec.task,
    )
    require_enough(images, spec.task, location)
    require_columns(spec.attributes, images.attributes, location)
    return images


def groups_of(spec: TrainSpec, images: LabelledImages) -> Sequence[str] | None:
    """Return what stays together, row by row.

    Raises:
        UnknownNameError: There is no such column.
    """
    if spec.group_column is None:
        return None
    if spec.group_column not in images.attributes:
        raise UnknownNameError("column to group by", spec.group_column, list(images.attributes))
    return images.attributes[spec.group_column]


def is_stratified(spec: TrainSpec) -> bool:
    """Whether every class gets its share of each part."""
    return task_class(spec.task).label_coverage == "all"


def _divide(spec: TrainSpec, images: LabelledImages, split_file: str | None) -> Split:
    own_test = None
    if spec.test_data is not None:
        require_single_test_set(images, spec.data, spec.test_data)
        own_test = _read_data(spec, spec.test_data)
        require_no_splits(own_test, spec.test_data)
    if split_file is not None:
        every = images if own_test is None else join_images(images, own_test)
        return read_split(split_file, every)
    if own_test is None and spec.test_fraction == 0 and "test" not in images.splits:
        raise InputError("Nothing is left to test on: name --test-data, or a --test-fraction.")
    split = split_images(
        images,
        stratify=is_stratified(spec),
        validation_fraction=spec.validation_fraction,
        test_fraction=0.0 if own_test else spec.test_fraction,
        seed=spec.seed,
        groups=groups_of(spec, images),
    )
    return Split(split.train, split.validation, own_test or split.test)


def plan_network(
    spec: TrainSpec, settings: Settings, images: LabelledImages, split: Split, task: Task
) -> TrainPlan:
    """Choose the network, its input and the weights that it starts from.

    Raises:
        UserError: It cannot be had, or does not fit the specification.
    """
    parent = load_model(spec.parent, settings).package if spec.parent is not None else None
    name = _architecture_name(spec, parent)
    contract = _contract(spec, name, parent)
    attributes = _learn_attributes(spec, split, parent)
    length = num_features(attributes)
    architecture = architecture_for(name, contract, task.num_outputs, length)
    check_fits(architecture, *contract.size)
    torch.manual_seed(spec.seed)
    if parent is not None:
        task = task.in_order_of(parent.task)  # so that the parent's head knows them
        module = _from_parent(parent, task, attributes, architecture)
    elif spec.pretrained:
        module, plain = build_pretrained(
            name, in_channels=contract.channels, num_outputs=task.num_outputs
        )
        architecture = plain.model_copy(update={"num_attributes": length})
        module = join_attributes(module, architecture) if attributes else module
    else:
        module = build(architecture)
    require_freezable(spec, stages_of(module, task.num_outputs))
    return TrainPlan(
        spec=spec,
        images=images,
        split=split,
        task=task,
        architecture=architecture,
        contract=contract,
        module=module,
        parent=None if parent is None else parent.digest,
        attributes=attributes,
    )


def _learn_attributes(
    spec: TrainSpec, split: Split, parent: ModelPackage | None
) -> tuple[Attribute, ...]:
    """Learn the attributes of the training part, and see that they suit the other parts."""
    known = () if parent is None else parent.attributes
    attributes = fit_attributes(spec.attributes, split.train.attributes, parents=known)
    for part in (split.validation, split.test):
        encode_attributes(attributes, part)
    return attributes


def _architecture_name(spec: TrainSpec, parent: ModelPackage | None) -> str:
    if parent is None:
        return spec.architecture or DEFAULT_ARCHITECTURE
    name = parent.manifest.architecture.name
    if spec.architecture not in (None, name):
        raise InputError(
            f"architecture {spec.architecture}: the parent {spec.parent} is a {name}; leave the "
            "architecture out."
        )
    return name


def _contract(spec: TrainSpec, name: str, parent: ModelPackage | None) -> ImageContract:
    """Take the parent's contract, whose images its weights know, unless another one is named."""
    if parent is not None and spec.contract is None and spec.image_size is None:
        return parent.contract
    return default_contract(name, spec.contract, size=spec.image_size)


def _from_parent(
    parent: ModelPackage, task: Task, attributes: Sequence[Attribute], architecture: Architecture
) -> nn.Module:
    """Build the parent's network; its head stays only where the labels are the same.

    What it knows of attributes stays only where these are the same.
    """
    module = parent.build_module().train()
    others = parent.attributes != tuple(attributes)
    if others and parent.attributes:
        module = drop_attributes(module)
    if not task.shares_head_with(parent.task):
        replace_head(module, parent.task.num_outputs, task.num_outputs)
    if others and attributes:
        module = join_attributes(module, architecture)
    return module
