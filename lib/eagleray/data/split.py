"""Divides labelled data into train, validation and test splits, reproducibly.

    split = split_images(images, stratify=True, validation_fraction=0.1, test_fraction=0.2, seed=0)

Rows with the same location, and rows of one group, are never in two splits.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eagleray.core.errors import InputError
from eagleray.data.groups import connect_groups
from eagleray.data.labelled import LabelledImages
from eagleray.io import storage
from eagleray.io.tables import digest_table
from eagleray.tasks import task_class

__all__ = [
    "SPLIT_NAMES",
    "Split",
    "describe_missing_splits",
    "fold_images",
    "require_complete_split",
    "require_no_splits",
    "require_single_test_set",
    "split_images",
]

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """Labelled data in three splits.

    Attributes:
        train: Images to train on.
        validation: Images to choose the best epoch and settings by.
        test: Images to evaluate on, once.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages

    @property
    def by_name(self) -> dict[str, LabelledImages]:
        """The splits by name, in the order of `SPLIT_NAMES`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of the splits."""
        return digest_table([SPLIT_NAMES, [images.digest for images in self.by_name.values()]])


# --- divide -----------------------------------------------------------------------------------


def split_images(
    images: LabelledImages,
    *,
    stratify: bool,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    groups: Sequence[str] | None = None,
) -> Split:
    """Divide the data reproducibly.

    Splits that the data have of their own are kept; those that they lack are taken from train.

    Args:
        images: All rows.
        stratify: Whether every class has the same share of each split (at least one image).
        validation_fraction: Fraction of all rows.
        test_fraction: Fraction of all rows; 0 with a separate test set.
        seed: The same seed and data give the same split.
        groups: A key for each row, "" for a row of its own. Rows with the same key stay together;
            fractions and classes are then kept as far as that allows.

    Raises:
        InputError: If there are fewer groups than splits.
    """
    if images.splits:
        return _split_further(
            images,
            stratify=stratify,
            fractions={"validation": validation_fraction, "test": test_fraction},
            seed=seed,
            groups=groups,
        )
    generator = np.random.default_rng(seed)
    keys: Sequence[str] = images.labels if stratify else [""] * len(images)
    together = _rows_together(images, groups)
    if together is not None:
        fractions = (validation_fraction, test_fraction)
        return _split_groups(images, together, keys, fractions, generator)
    classes: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        classes.setdefault(key, []).append(index)
    rows: tuple[list[int], list[int], list[int]] = ([], [], [])
    for key in sorted(classes):
        order = generator.permutation(classes[key]).tolist()
        num_test = _share(len(order), test_fraction)
        num_validation = _share(len(order), validation_fraction)
        rows[2].extend(order[:num_test])
        rows[1].extend(order[num_test : num_test + num_validation])
        rows[0].extend(order[num_test + num_validation :])
    return Split(*(images.take(sorted(some)) for some in rows))


def describe_missing_splits(images: LabelledImages, *, has_own_test: bool) -> tuple[str, ...]:
    """Return a sentence on the splits that are taken from train, or none.

    Args:
        images: Data that may have splits of their own.
        has_own_test: Whether there is a separate test set.
    """
    wanted = ("validation",) if has_own_test else ("validation", "test")
    lacking = [name for name in wanted if name not in images.splits]
    if not images.splits or not lacking:
        return ()
    return (f"They have no {' and no '.join(lacking)} split, which is taken from train.",)


def _split_further(
    images: LabelledImages,
    *,
    stratify: bool,
    fractions: Mapping[str, float],
    seed: int,
    groups: Sequence[str] | None,
) -> Split:
    """Take the splits that the data lack from the train split that they have."""
    rows: dict[str, list[int]] = {name: [] for name in SPLIT_NAMES}
    for row, name in enumerate(images.splits):
        rows[name].append(row)
    if groups is not None:
        _require_groups_apart(images.splits, groups)
    lacking = {name for name in fractions if not rows[name]}
    rest = split_images(
        images.take(rows["train"]),
        stratify=stratify,
        validation_fraction=fractions["validation"] if "validation" in lacking else 0.0,
        test_fraction=fractions["test"] if "test" in lacking else 0.0,
        seed=seed,
        groups=None if groups is None else [groups[row] for row in rows["train"]],
    )
    return Split(
        rest.train,
        rest.validation if "validation" in lacking else images.take(rows["validation"]),
        rest.test if "test" in lacking else images.take(rows["test"]),
    )


def _require_groups_apart(splits: Sequence[str], groups: Sequence[str]) -> None:
    of_group: dict[str, str] = {}
    for group, split in zip(groups, splits, strict=True):
        first = of_group.setdefault(group, split) if group else split
        if first != split:
            raise InputError(
                f"Rows of group {group!r} are to stay together, and the data have splits of their "
                f"own, with some of them in {first} and some in {split}; leave the group out, or "
                "divide anew."
            )


def require_single_test_set(images: LabelledImages, where: str, test_data: str | None) -> None:
    """Refuse a separate test set for data that have a test split.

    Raises:
        InputError: If there are both.
    """
    if test_data is not None and "test" in images.splits:
        raise InputError(
            f"{where} has a test split of its own, and --test-data names {test_data}; leave "
            "--test-data out, or name the data to train on alone."
        )


def require_no_splits(images: LabelledImages, where: str) -> None:
    """Refuse data with splits of their own, where one set is wanted.

    Raises:
        InputError: If there are several splits; the message names a folder that would do.
    """
    if images.splits and not storage.is_folder(where):
        raise InputError(
            f"{where} is divided into {', '.join(dict.fromkeys(images.splits))}; name data of one "
            "of them, or measure one with `eagleray evaluate --split`."
        )
    if images.splits:
        root = storage.absolute(where).rstrip("/") + "/"
        folders = dict.fromkeys(uri.removeprefix(root).split("/")[0] for uri in images.uris)
        raise InputError(
            f"{where} is divided into {', '.join(folders)}; name one of them, as in "
            f"{where.rstrip('/')}/{list(folders)[-1]}."
        )


def _share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction)) if fraction > 0 else 0


def _rows_together(images: LabelledImages, groups: Sequence[str] | None) -> list[list[int]] | None:
    """Return the rows of each group, ascending; None if every row is a group of its own.

    Rows with the same location are one image, so two groups that share one are one group.
    """
    assert groups is None or len(groups) == len(images), "a key for each row"
    if groups is None and len(set(images.uris)) == len(images):
        return None
    together: dict[int, list[int]] = {}
    for row, number in enumerate(connect_groups([images.uris, *([groups] if groups else [])])):
        together.setdefault(number, []).append(row)
    return list(together.values())


def _split_groups(
    images: LabelledImages,
    together: Sequence[list[int]],
    keys: Sequence[str],
    fractions: tuple[float, float],
    generator: np.random.Generator,
) -> Split:
    """Give each group, the largest first, to the split that it brings nearest to its shares."""
    places = [0] + [1 + index for index, fraction in enumerate(fractions) if fraction > 0]
    if len(together) < len(places):
        raise InputError(
            f"The rows are in {len(together)} groups that stay together, too few for {len(places)} "
            "splits; group by a finer column."
        )
    shares = _Shares(keys, fractions)
    splits: list[list[int]] = [[], [], []]
    order = [together[index] for index in generator.permutation(len(together))]
    order.sort(key=len, reverse=True)
    for num_done, rows in enumerate(order):
        counts = shares.count(rows)
        empty = [place for place in places if not splits[place]]
        # The last groups are for the splits that would be empty.
        choices = empty if len(empty) == len(order) - num_done else places
        best = min(choices, key=lambda place, counts=counts: shares.cost(place, counts))  # type: ignore[misc]
        splits[best] += rows
        shares.add(best, counts)
    return Split(*(images.take(sorted(split)) for split in splits))


class _Shares:
    """Tracks how far each split is from its share of every class and of all rows.

    The distance is that of a chi-square statistic: the squared difference divided by the share.
    """

    def __init__(self, keys: Sequence[str], fractions: tuple[float, float]) -> None:
        self._keys = keys
        self._wanted: dict[str | None, list[float]] = {}
        for key, count in self.count(range(len(keys))):
            held_out = [float(_share(count, fraction)) for fraction in fractions]
            self._wanted[key] = [max(1.0, count - sum(held_out)), *held_out]
        self._missing = {key: list(wanted) for key, wanted in self._wanted.items()}

    def count(self, rows: Sequence[int]) -> list[tuple[str | None, int]]:
        """Count the rows of each class; None stands for all classes."""
        return [(None, len(rows)), *Counter(self._keys[row] for row in rows).items()]

    def cost(self, split: int, counts: Sequence[tuple[str | None, int]]) -> float:
        """Return the change of a split's distance from its shares if it gets some rows."""
        return sum(
            count * (count - 2 * self._missing[key][split]) / self._wanted[key][split]
            for key, count in counts
        )

    def add(self, split: int, counts: Sequence[tuple[str | None, int]]) -> None:
        """Record that a split has some rows."""
        for key, count in counts:
            self._missing[key][split] -= count


def fold_images(
    images: LabelledImages,
    num_folds: int,
    *,
    stratify: bool,
    seed: int,
    groups: Sequence[str] | None = None,
) -> list[tuple[LabelledImages, LabelledImages]]:
    """Divide the data for cross-validation.

    Args:
        images: All rows.
        num_folds: Number of folds; each row is in one validation set.
        stratify: Whether every class has the same share of each fold, as far as groups allow.
        seed: The same seed and data give the same folds.
        groups: As for `split_images`.

    Returns:
        For each fold the rows to train on and those to validate on.

    Raises:
        InputError: If there are not enough rows, groups or images of a class.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    together = _rows_together(images, groups)
    _require_folds(images, num_folds, len(together or images), stratify=stratify)
    kinds = {
        (False, False): KFold,
        (False, True): GroupKFold,
        (True, False): StratifiedKFold,
        (True, True): StratifiedGroupKFold,
    }
    folder = kinds[stratify, together is not None](num_folds, shuffle=True, random_state=seed)
    numbers = np.zeros(len(images), np.int64)
    for number, rows in enumerate(together or ()):
        numbers[rows] = number
    keys = None if together is None else numbers
    return [
        (images.take(train.tolist()), images.take(validation.tolist()))
        for train, validation in folder.split(numbers, images.labels, keys)
    ]


def _require_folds(
    images: LabelledImages, num_folds: int, num_groups: int, *, stratify: bool
) -> None:
    if num_folds < 2:
        raise InputError(f"Cross-validation needs 2 folds or more, not {num_folds}.")
    if num_groups < num_folds:
        raise InputError(
            f"{num_folds} folds need as many groups of images, and there are {num_groups}; take "
            "fewer folds."
        )
    if stratify:
        label, count = min(Counter(images.labels).items(), key=lambda item: (item[1], item[0]))
        if count < num_folds:
            raise InputError(
                f"Class {label!r} has {count} images, too few for {num_folds} folds; take fewer "
                "folds, add images or remove the class."
            )


def require_complete_split(split: Split, task: str) -> None:
    """Refuse a split without the images to train, validate or test on.

    Every split must have images, and every label must be in the splits that the task names in its
    `label_coverage`.

    Raises:
        InputError: If a split or a class in it has no images.
    """
    for name, images in split.by_name.items():
        if not len(images):
            raise InputError(f"The {name} split has no images; change the fractions or the groups.")
    kind = task_class(task)
    if kind.label_coverage == "none":
        return
    found = {
        name: set(itertools.chain.from_iterable(map(kind.labels_in, images.labels)))
        for name, images in split.by_name.items()
    }
    needed = SPLIT_NAMES if kind.label_coverage == "all" else SPLIT_NAMES[:1]
    for label in sorted(set().union(*found.values())):
        for name in needed:
            if label not in found[name]:
                raise InputError(
                    f"Class {label!r} has no image in the {name} split; add images or groups "
                    "of it, take another seed, or remove the class."
                )
