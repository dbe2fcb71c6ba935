"""Plans a training run: its data, splits, task, network and initial weights.

Planning checks the whole specification and opens no image.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings
from eagleray.data.encoding import encode_attributes, encode_targets
from eagleray.data.groups import merge_groups
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
    default_contract,
    require_architecture,
)
from eagleray.models.attributes import (
    Attribute,
    fit_attributes,
    num_features,
    require_columns,
)
from eagleray.models.building import (
    build,
    build_on_meta,
    build_pretrained,
    check_fits,
    drop_attributes,
    join_attributes,
    load_backbone,
    replace_head,
    task_of_network,
)
from eagleray.models.compositions import backbone_of
from eagleray.models.networks.channels import channels_of
from eagleray.models.package import ModelPackage
from eagleray.models.published import require_trainable
from eagleray.registry.references import find_version, load_model
from eagleray.registry.registry import Registry
from eagleray.tasks import Task, make_task, task_class
from eagleray.training.custom import require_custom_objects
from eagleray.training.extension import Extension
from eagleray.training.loop.scales import scaled_sizes
from eagleray.training.loop.stages import require_freezable, stages_of
from eagleray.training.monitor import Monitor, monitor_of, require_monitor
from eagleray.training.pruning import Pruned, prune
from eagleray.training.spec import TrainSpec
from eagleray.training.teachers import find_teacher, require_teacher

__all__ = [
    "TrainPlan",
    "describe_plan",
    "divide_again",
    "groups_of",
    "is_stratified",
    "make_plan",
    "plan_network",
]


@dataclass(frozen=True)
class TrainPlan:
    """A specification with everything that it refers to.

    Attributes:
        spec: Specification of the run.
        images: All labelled images but those of a separate test set.
        split: Training, validation and test split.
        task: Prediction task.
        architecture: Architecture of the network.
        contract: Image contract of the network's input.
        module: Network with the initial weights.
        parent: Digest of the parent's package, if there is one.
        teacher: Package of the model to learn from, if there is one.
        pruned: Network after pruning and its cost, if the parent was pruned.
        attributes: Attributes that the network takes beside images.
        extensions: Extensions of the run beyond its first number of epochs, in order.
        duplicates: Group of each image with duplicates by its location, if they stay together.
    """

    spec: TrainSpec
    images: LabelledImages
    split: Split
    task: Task
    architecture: Architecture
    contract: ImageContract
    module: nn.Module
    parent: str | None
    teacher: ModelPackage | None = None
    pruned: Pruned | None = None
    attributes: tuple[Attribute, ...] = ()
    extensions: tuple[Extension, ...] = ()
    duplicates: Mapping[str, str] = field(default_factory=dict)

    @property
    def monitor(self) -> Monitor:
        """Metric that selects the best epoch."""
        return monitor_of(self.spec, self.task)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on how the data were read, and what was skipped."""
        lacking = describe_missing_splits(self.images, has_own_test=self.spec.test_data is not None)
        return tuple(dict.fromkeys((*self.images.notes, *lacking, *self.split.test.notes)))

    @property
    def data_digest(self) -> str:
        """SHA-256 of the images, their labels and the attributes in use."""
        if not self.attributes:
            return self.images.digest
        columns = [self.images.attributes[attribute.name] for attribute in self.attributes]
        images = self.images
        return digest_table([images.uris, images.versions, images.labels, *columns])


def make_plan(spec: TrainSpec, settings: Settings, *, split_file: str | None = None) -> TrainPlan:
    """Plan a run.

    Args:
        spec: Specification of the run.
        settings: Settings of the registry.
        split_file: Split of the run to resume, instead of a new one.

    Raises:
        UserError: If the specification cannot be carried out; the message says how to fix it.
    """
    if spec.architecture is not None:
        with spec.naming("architecture"):
            require_architecture(spec.architecture)
    spec = _name_versions(spec, settings)
    images = _read_data(spec, spec.data)
    _require_free_split(spec, images)
    split = _split(spec, images, split_file or spec.split_file)
    task = make_task(spec.task, images.labels, images.places)
    if spec.positive is not None:
        with spec.naming("positive"):
            task = task.with_positive(spec.positive)
    encode_targets(task, split.test)  # a separate test set may have other labels
    require_complete_split(split, spec.task)
    require_monitor(spec, task, encode_targets(task, split.validation))
    for label in spec.label_weights:
        if label not in task.labels:
            raise UnknownNameError("label", label, task.labels, where=spec.name_of("class_weights"))
    return plan_network(spec, settings, images, split, task)


def _name_versions(spec: TrainSpec, settings: Settings) -> TrainSpec:
    """Replace aliases by the versions that they point to, which a resumed run must have too."""
    named = {}
    for field_name in ("parent", "teacher"):
        reference = getattr(spec, field_name)
        if "@" in (reference or ""):
            with spec.naming(field_name):
                version = find_version(reference, Registry(settings))
            if version is not None:
                named[field_name] = version.reference
    return spec.model_copy(update=named)


def _read_data(spec: TrainSpec, location: str) -> LabelledImages:
    """Read labelled images as a specification says.

    Raises:
        InputError: If they are missing or too few.
    """
    images = read_labelled(
        location,
        uri_column=spec.column,
        label_column=spec.label_column,
        label_columns=spec.label_columns,
        separator=spec.separator,
        task=spec.task,
        policy=spec.path_policy,
        max_invalid=spec.max_invalid,
    )
    require_enough(images, spec.task, location)
    with spec.naming("attributes"):
        require_columns(spec.attributes, images.attributes, location)
    return images


def _require_free_split(spec: TrainSpec, images: LabelledImages) -> None:
    """Refuse to keep duplicates together in data that are divided already."""
    if spec.keep_duplicates_together and images.splits:
        raise InputError(
            f"{spec.name_of('keep_duplicates_together')}: this divides the data, and {spec.data} "
            "has splits of its own; leave it out, or put all images together."
        )


def groups_of(
    spec: TrainSpec, images: LabelledImages, duplicates: Mapping[str, str] | None = None
) -> Sequence[str] | None:
    """Return the group of each row; a group stays in one split. None without groups.

    Args:
        spec: Specification, which may name a group column.
        images: The rows.
        duplicates: Groups of duplicates by location; rows that either joins are one group.

    Raises:
        UnknownNameError: If there is no such column.
    """
    groupings = [[duplicates.get(uri, "") for uri in images.uris]] if duplicates else []
    if spec.group_column is not None:
        if spec.group_column not in images.attributes:
            raise UnknownNameError(
                f"column of {spec.data}",
                spec.group_column,
                images.attributes,
                where=spec.name_of("group_column"),
            )
        groupings.append(list(images.attributes[spec.group_column]))
    if len(groupings) == 2:
        return merge_groups(*groupings)
    return groupings[0] if groupings else None


def is_stratified(spec: TrainSpec) -> bool:
    """Whether the splits are stratified by class."""
    return task_class(spec.task).label_coverage == "all"


def _split(spec: TrainSpec, images: LabelledImages, split_file: str | None) -> Split:
    separate_test = None
    if spec.test_data is not None:
        require_single_test_set(images, spec.data, spec.test_data)
        separate_test = _read_data(spec, spec.test_data)
        require_no_splits(separate_test, spec.test_data)
    if split_file is not None:
        every = images if separate_test is None else join_images(images, separate_test)
        return read_split(split_file, every)
    if separate_test is None and spec.test_fraction == 0 and "test" not in images.splits:
        raise InputError(
            f"{spec.name_of('test_fraction')}: Nothing is left to test on; name a fraction above "
            "0, or other images as the test data."
        )
    return _divide(spec, images, separate_test, groups_of(spec, images))


def _divide(
    spec: TrainSpec,
    images: LabelledImages,
    separate_test: LabelledImages | None,
    groups: Sequence[str] | None,
) -> Split:
    split = split_images(
        images,
        stratify=is_stratified(spec),
        validation_fraction=spec.validation_fraction,
        test_fraction=0.0 if separate_test else spec.test_fraction,
        seed=spec.seed,
        groups=groups,
    )
    return Split(split.train, split.validation, separate_test or split.test)


def divide_again(plan: TrainPlan, settings: Settings, duplicates: Mapping[str, str]) -> TrainPlan:
    """Return the plan with its data divided anew, so that duplicates are in one split.

    Args:
        plan: Plan of a new run.
        settings: Settings of the registry.
        duplicates: Group of each image with duplicates, by its location.

    Raises:
        InputError: If there are too few groups for all splits and classes.
    """
    spec, images = plan.spec, plan.images
    separate_test = None if spec.test_data is None else plan.split.test
    split = _divide(spec, images, separate_test, groups_of(spec, images, duplicates))
    require_complete_split(split, spec.task)
    again = plan_network(spec, settings, images, split, plan.task)  # attributes are fitted to it
    return replace(again, duplicates=duplicates)


def plan_network(
    spec: TrainSpec, settings: Settings, images: LabelledImages, split: Split, task: Task
) -> TrainPlan:
    """Choose the network, its contract and its initial weights.

    Raises:
        UserError: If they do not exist, or do not fit the specification.
    """
    parent = teacher = None
    if spec.parent is not None:
        with spec.naming("parent"):
            parent = load_model(spec.parent, settings).package
            parent.require_pytorch()
    if spec.teacher is not None:
        with spec.naming("teacher"):
            teacher = find_teacher(spec.teacher, settings)
    name = _architecture_name(spec, parent, task)
    contract = _contract(spec, name, parent)
    attributes = _fit_attributes(spec, split, parent or teacher)
    length = num_features(attributes)
    with spec.naming("architecture" if spec.architecture is not None else "parent"):
        require_trainable(name, task, has_weights=parent is not None or spec.pretrained)
    with spec.naming(_field_at_fault(spec, task)):
        task = task_of_network(
            task, architecture_for(name, contract, task.num_outputs, length), contract
        )
        architecture = architecture_for(name, contract, task.num_outputs, length)
        check_fits(architecture, *contract.size, task=task, loss=spec.loss)
    if spec.multi_scale:
        with spec.naming("multi_scale"):
            _check_scales(architecture, contract.size, spec.multi_scale, task)
    _require_whole_image(spec, task, contract)
    require_custom_objects(spec, task, contract, split.train)
    torch.manual_seed(spec.seed)
    pruned = None
    if parent is not None:
        if spec.positive is None:
            task = task.in_order_of(parent.task)  # so that the parent's head can be kept
        module = _build_from_parent(parent, task, attributes, architecture)
        if parent.manifest.architecture.channels:  # it was pruned before
            channels = channels_of(module, build_on_meta(architecture))
            architecture = architecture.model_copy(update={"channels": channels})
        if spec.prune:
            with spec.naming("prune"):
                pruned = prune(module, architecture, contract.size, spec.prune)
            module, architecture = pruned.module, pruned.architecture
    elif spec.pretrained:
        with spec.naming("pretrained"):
            module, plain = build_pretrained(
                name, in_channels=contract.channels, num_outputs=task.num_outputs
            )
        architecture = plain.model_copy(update={"num_attributes": length})
        module = join_attributes(module, architecture) if attributes else module
    else:
        module = build(architecture)
    require_freezable(spec, stages_of(module, task.num_outputs))
    plan = TrainPlan(
        spec=spec,
        images=images,
        split=split,
        task=task,
        architecture=architecture,
        contract=contract,
        module=module,
        parent=None if parent is None else parent.digest,
        teacher=teacher,
        pruned=pruned,
        attributes=attributes,
    )
    if teacher is not None:
        with spec.naming("teacher"):
            require_teacher(plan, teacher, reference=str(spec.teacher))
    return plan


def _fit_attributes(
    spec: TrainSpec, split: Split, earlier: ModelPackage | None
) -> tuple[Attribute, ...]:
    """Learn the attributes of the training split, and check that the other splits fit them.

    Those of an earlier model, the parent or the teacher, are kept where they cover the values.
    """
    known = () if earlier is None else earlier.attributes
    attributes = fit_attributes(spec.attributes, split.train.attributes, parents=known)
    for images in (split.validation, split.test):
        encode_attributes(attributes, images)
    return attributes


def _check_scales(
    architecture: Architecture, size: tuple[int, int], change: float, task: Task
) -> None:
    """Check that a network can take the images of all steps.

    Raises:
        InputError: If it cannot, or there is but one size.
    """
    smallest, *_, largest = scaled_sizes(size, change)
    for height, width in (smallest, largest):
        try:
            check_fits(architecture, height, width, task=task)
        except InputError as error:
            raise InputError(f"multi_scale {change:g} cannot be used: {error}") from error


def _architecture_name(spec: TrainSpec, parent: ModelPackage | None, task: Task) -> str:
    """Return the architecture that is named, the parent's, or the task's default.

    A parent may also be the classifier that the named network is built on.
    """
    if parent is None:
        return spec.architecture or task.default_architecture
    name = parent.manifest.architecture.name
    if spec.architecture is not None and backbone_of(spec.architecture) == name:
        return spec.architecture
    if spec.architecture not in (None, name):
        raise InputError(
            f"{spec.name_of('architecture')}: the parent {spec.parent} is a {name}; leave "
            f"{spec.architecture} out."
        )
    return name


def _contract(spec: TrainSpec, name: str, parent: ModelPackage | None) -> ImageContract:
    """Return the parent's contract, which its weights were trained on, unless one is named.

    A network that is built on the parent has its own fit, and the parent's statistics and colours.
    """
    is_backbone = parent is not None and parent.manifest.architecture.name == backbone_of(name)
    if parent is not None and not is_backbone and not (spec.contract or spec.image_size):
        return parent.contract
    with spec.naming("contract" if spec.contract is not None else "image_size"):
        contract = default_contract(name, spec.contract, size=spec.image_size)
    if parent is None or not is_backbone:
        return contract
    of_parent = parent.contract.model_dump(include={"mean", "std", "color", "value_range"})
    return ImageContract.model_validate({**contract.model_dump(), **of_parent})


def _field_at_fault(spec: TrainSpec, task: Task) -> str:
    """Return the field that decides whether a network fits its images and its task."""
    if task.label_kind == "objects":
        return "architecture"
    return "contract" if spec.image_size is None else "image_size"


def _require_whole_image(spec: TrainSpec, task: Task, contract: ImageContract) -> None:
    """Refuse a contract that cuts places off for a task that says where things are.

    Raises:
        InputError: If it does.
    """
    if task.label_kind == "objects" and not contract.keeps_whole_image:
        raise InputError(
            f"{spec.name_of('contract')}: {task.as_model} needs the whole image, and "
            f"{spec.contract or 'this contract'} crops it; name letterbox or whole-image."
        )


def _build_from_parent(
    parent: ModelPackage, task: Task, attributes: Sequence[Attribute], architecture: Architecture
) -> nn.Module:
    """Build the parent's network; head and attributes are kept only if they are the same."""
    module = parent.build_module().train()
    if parent.manifest.architecture.name != architecture.name:
        return _on_backbone(parent, module, architecture)
    differ = parent.attributes != tuple(attributes)
    if differ and parent.attributes:
        module = drop_attributes(module)
    if not task.shares_head_with(parent.task):
        replace_head(module, parent.task.num_outputs, task.num_outputs)
    if differ and attributes:
        module = join_attributes(module, architecture)
    return module


def _on_backbone(
    parent: ModelPackage, classifier: nn.Module, architecture: Architecture
) -> nn.Module:
    """Build a network on a classifier, which becomes its backbone.

    Raises:
        InputError: If the classifier was changed, so that its weights do not fit.
    """
    module = build(architecture)
    try:
        load_backbone(module, classifier.state_dict())
    except RuntimeError:
        raise InputError(
            f"{parent.manifest.name} cannot be the backbone of {architecture.name}: its layers "
            "have other sizes, as after pruning or with attributes; name another parent."
        ) from None
    return module


def describe_plan(plan: TrainPlan) -> list[str]:
    """Return sentences on what will be trained: splits or folds, network, and positive label."""
    return [
        f"{_describe_split(plan)}; {plan.spec.task}, {plan.architecture.name}",
        *_positive(plan),
        *_compression(plan),
    ]


def _compression(plan: TrainPlan) -> list[str]:
    found = []
    if plan.pruned is not None:
        before, after = plan.pruned.multiply_adds_before, plan.pruned.multiply_adds
        found.append(
            f"pruned from {before:,} to {after:,} multiply-adds an image "
            f"({after / before - 1:+.1%})"
        )
    if plan.teacher is not None:
        manifest = plan.teacher.manifest
        found.append(f"taught by {plan.spec.teacher}, a {manifest.architecture.name}")
    return found


def _describe_split(plan: TrainPlan) -> str:
    spec, sizes = plan.spec, {name: len(images) for name, images in plan.split.by_name.items()}
    if spec.folds:
        num_images = sizes["train"] + sizes["validation"]
        return (
            f"{spec.folds} folds of {num_images:,} images: each is held out once, about "
            f"{num_images // spec.folds:,} images, and the others are divided into train and "
            f"validation; the test split of {sizes['test']:,} images is not used"
        )
    counts = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    again = ", before duplicates are brought together" if spec.keep_duplicates_together else ""
    return f"{counts} images{again}"


def _positive(plan: TrainPlan) -> list[str]:
    label = plan.task.positive
    if label is None:
        return []
    if plan.spec.positive is not None:
        return [f"positive label {label!r}"]
    others = [other for other in plan.task.labels if other != label]
    why = (
        "as in the parent"
        if plan.task.labels != tuple(sorted(plan.task.labels))
        else ("the second in alphabetical order")
    )
    return [f"positive label {label!r}, {why}; --positive {shlex.quote(others[0])} would swap them"]
