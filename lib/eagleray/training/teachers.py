"""Finds the model that teaches a run, and checks that it fits the student."""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.core.settings import Settings
from eagleray.imaging import ImageContract
from eagleray.models.attributes import Attribute
from eagleray.models.package import ModelPackage
from eagleray.registry.compatibility import ModelInterface, describe_differences
from eagleray.registry.references import find_version
from eagleray.registry.registry import Registry
from eagleray.tasks import Task

__all__ = ["find_teacher", "require_teacher"]


def find_teacher(reference: str, settings: Settings) -> ModelPackage:
    """Return the package of the registered version that teaches.

    Raises:
        InputError: If the reference does not name a version.
        UnknownNameError: If there is no such version.
        PackageError: If the package is not the one that was registered.
    """
    registry = Registry(settings)
    version = find_version(reference, registry)
    if version is None:
        raise InputError(
            f"{reference} is not a registered version, which a teacher must be; write NAME@ALIAS "
            "or NAME/VERSION, after `eagleray models register` for a package in a folder."
        )
    package = registry.load(version)
    if package.manifest.quantization is not None:
        raise InputError(
            f"{version.reference} is quantized and cannot teach; name the version that it was "
            "made from."
        )
    package.require_pytorch()
    return package


@dataclass(frozen=True)
class _Interface:
    task: Task
    contract: ImageContract
    attributes: tuple[Attribute, ...]


def require_teacher(student: ModelInterface, teacher: ModelPackage, *, reference: str) -> None:
    """Check that a teacher predicts what the student learns to predict, from the same input.

    The size of the input and its normalisation may differ.

    Args:
        student: Plan of the student.
        teacher: Package of the teacher.
        reference: The teacher as the user wrote it, for messages.

    Raises:
        InputError: If they differ in task, labels, their order, colours or attributes.
    """
    shape = {"resize": student.contract.resize, "crop": student.contract.crop}
    same_size = teacher.contract.model_copy(update=shape)
    given = _Interface(teacher.task, same_size, teacher.attributes)
    differences = [*describe_differences(student, given)]
    if not differences and student.attributes != teacher.attributes:
        names = ", ".join(one.name for one in student.attributes)
        differences = [f"another encoding of the attributes {names}"]
    if differences:
        raise InputError(
            f"{reference} has {'; '.join(differences)}; a teacher needs the task, the "
            "labels in their order, the colours and the attributes of the model that it teaches."
        )
    student.task.teacher_losses(teacher.task, 1.0)  # some tasks have none
