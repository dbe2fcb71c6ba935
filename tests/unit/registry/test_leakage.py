"""Images of an evaluation that the version, or one that it descends from, learned from."""

from __future__ import annotations

from eagleray.data.labelled import LabelledImages
from eagleray.registry.leakage import find_leakage
from eagleray.registry.registry import Registry
from tests.support.models import LINEAGE
from tests.support.registry import keep_split, register

IMAGES = LabelledImages(
    tuple(f"/photos/{number}.png" for number in range(6)), ("cat",) * 6, tuple("111111")
)


def row(number: int, split: str, version: str = "1") -> tuple[str, ...]:
    return (f"/photos/{number}.png", version, "cat", split)


def test_train_and_validation_images_are_found_and_test_images_are_not(
    registry: Registry, name: str
) -> None:
    (version,) = register(registry, name)
    assert not find_leakage(registry, version, IMAGES)  # its run keeps no table
    keep_split(
        registry,
        version,
        [
            row(0, "train"),
            row(1, "validation"),
            row(2, "test"),
            row(3, "train", "2"),
            row(9, "train"),
        ],
    )
    found = find_leakage(registry, version, IMAGES)
    assert found.rows.tolist() == [0, 1]  # the file of row 3 has changed since
    assert found.sentence == (
        f"2 of these 6 images were used to train {name}/1 (1 in the train split of {name}/1, 1 in "
        f"the validation split of {name}/1): the metrics are optimistic, and do not count for KPIs "
        "and promotions."
    )


def test_an_image_whose_version_is_not_known_counts(registry: Registry, name: str) -> None:
    (version,) = register(registry, name)
    keep_split(registry, version, [row(0, "train", ""), row(1, "train", "2")])
    assert find_leakage(registry, version, IMAGES).rows.tolist() == [0]


def test_what_the_parent_and_its_parent_were_trained_on_is_found(
    registry: Registry, name: str
) -> None:
    (first,) = register(registry, name)
    versions = [first]
    for _ in range(2):
        lineage = LINEAGE.model_copy(update={"parent": versions[-1].digest})
        versions += register(registry, name, lineage=lineage)
    keep_split(registry, versions[0], [row(0, "train"), row(1, "test")])
    keep_split(registry, versions[2], [row(1, "train"), row(2, "test")])
    found = find_leakage(registry, versions[2], IMAGES)
    assert found.rows.tolist() == [0, 1]
    assert found.uses == {(f"{name}/3", "train"): 1, (f"{name}/1", "train"): 1}
    assert f"1 in the train split of {name}/1, from which it descends" in found.sentence
    assert find_leakage(registry, versions[1], IMAGES).rows.tolist() == [0]


def test_what_the_teacher_was_trained_on_is_found(registry: Registry, name: str) -> None:
    (teacher,) = register(registry, name)
    lineage = LINEAGE.model_copy(update={"teacher": teacher.digest})
    (student,) = register(registry, name, lineage=lineage)
    keep_split(registry, teacher, [row(4, "train"), row(5, "test")])
    assert find_leakage(registry, student, IMAGES).rows.tolist() == [4]
