"""The parts of labelled data: divided once, reproducibly, and kept in a file.

    split = split_images(images, stratify=True, validation_fraction=0.1, test_fraction=0.2, seed=0)
    write_split(split, "split.parquet", data_digest=images.digest, seed=0)
    split = read_split("split.parquet", images)

Rows with the same location, and rows of one group, are never in two parts.
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError
from eagleray.data.labelled import LabelledImages
from eagleray.io import storage
from eagleray.io.tables import digest_table, open_parquet
from eagleray.tasks import task_class

__all__ = [
    "SPLIT_NAMES",
    "SPLIT_SCHEMA",
    "Split",
    "describe_missing_splits",
    "fold_images",
    "merge_groups",
    "read_named_split",
    "read_split",
    "require_complete_split",
    "require_no_splits",
    "require_single_test_set",
    "split_images",
    "take_named_split",
    "write_split",
]

SPLIT_NAMES = ("train", "validation", "test")

SPLIT_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("uri", "version", "label", "part")]
)
"""Of a split file; in its key-value metadata are the format, the seed and the digests."""

_FORMAT = "eagleray-split/1"


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of the data: `train` is learned, `validation` chooses, `test` is used once."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages

    @property
    def by_name(self) -> dict[str, LabelledImages]:
        """The parts by name, in the order of `SPLIT_NAMES`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of the parts."""
        return digest_table([SPLIT_NAMES, [part.digest for part in self.by_name.values()]])


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
    """Split the data once, reproducibly.

    Data that come divided stay so; a part that they lack is taken from what they have to train on.

    Args:
        images: All rows.
        stratify: Give every class the same share of each part (at least one image).
        validation_fraction: Of all rows.
        test_fraction: Of all rows; 0 when there is a test set of its own.
        seed: The same seed and data give the same split.
        groups: A key for each row, "" for a row on its own. Rows with one key stay together;
            shares and classes are then kept as far as that allows.

    Raises:
        InputError: There are fewer groups than parts.
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
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for key in sorted(classes):
        order = generator.permutation(classes[key]).tolist()
        num_test = _share(len(order), test_fraction)
        num_validation = _share(len(order), validation_fraction)
        parts[2].extend(order[:num_test])
        parts[1].extend(order[num_test : num_test + num_validation])
        parts[0].extend(order[num_test + num_validation :])
    train, validation, test = (images.take(sorted(part)) for part in parts)
    return Split(train, validation, test)


def describe_missing_splits(images: LabelledImages, *, has_own_test: bool) -> tuple[str, ...]:
    """Say which splits of divided data are taken from the one to train on, in one sentence or none.

    Args:
        images: Of which some may be divided already.
        has_own_test: Whether other images are to test on.
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
    """Take the parts that divided data lack from those to train on."""
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
                f"Rows of group {group!r} are to stay together, and the data come divided, with "
                f"some of them in {first} and some in {split}; leave the group out, or divide "
                "anew."
            )


def require_single_test_set(images: LabelledImages, where: str, test_data: str | None) -> None:
    """Refuse a test set of its own beside data that have one.

    Raises:
        InputError: Saying what to leave out.
    """
    if test_data is not None and "test" in images.splits:
        raise InputError(
            f"{where} has a test split of its own, and --test-data names {test_data}; leave "
            "--test-data out, or name the data to train on alone."
        )


def require_no_splits(images: LabelledImages, where: str) -> None:
    """Refuse data that come divided, where one part is wanted.

    Raises:
        InputError: Naming a folder that would do.
    """
    if images.splits and not storage.is_folder(where):
        raise InputError(
            f"{where} is divided into {', '.join(dict.fromkeys(images.splits))} by a column; make "
            "a table of one of them, or measure one with `eagleray evaluate --split`."
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


def merge_groups(*groupings: Sequence[str]) -> tuple[str, ...]:
    """Return keys under which rows are together that are so under any of several keys.

    Args:
        groupings: Of the same rows, a key for each; "" is a row on its own.
    """
    numbers = _connect(groupings)
    counts = Counter(numbers)
    return tuple(f"group-{number}" if counts[number] > 1 else "" for number in numbers)


def _connect(groupings: Sequence[Sequence[str]]) -> list[int]:
    """Return a number for each row, the same for rows that keys hold together, at any remove."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_rows = len(groupings[0])
    firsts = []
    for keys in groupings:
        first: dict[str, int] = {}
        firsts += [first.setdefault(key, row) if key else row for row, key in enumerate(keys)]
    rows = np.tile(np.arange(num_rows), len(groupings))
    graph = coo_array((np.ones(len(rows)), (rows, firsts)), shape=(num_rows, num_rows))
    _, numbers = connected_components(graph, directed=False)
    found: list[int] = numbers.tolist()
    return found


def _rows_together(images: LabelledImages, groups: Sequence[str] | None) -> list[list[int]] | None:
    """Return the rows of each group, ascending; None where every row is on its own.

    Rows with one location are one image, so two groups that share one are one group.
    """
    assert groups is None or len(groups) == len(images), "a key for each row"
    if groups is None and len(set(images.uris)) == len(images):
        return None
    together: dict[int, list[int]] = {}
    for row, number in enumerate(_connect([images.uris, *([groups] if groups else [])])):
        together.setdefault(number, []).append(row)
    return list(together.values())


def _split_groups(
    images: LabelledImages,
    together: Sequence[list[int]],
    keys: Sequence[str],
    fractions: tuple[float, float],
    generator: np.random.Generator,
) -> Split:
    """Give each group, the largest first, to the part that comes nearest to its shares by it."""
    places = [0] + [1 + index for index, fraction in enumerate(fractions) if fraction > 0]
    if len(together) < len(places):
        raise InputError(
            f"The rows are in {len(together)} groups that stay together, too few for {len(places)} "
            "parts; group by a finer column."
        )
    shares = _Shares(keys, fractions)
    parts: list[list[int]] = [[], [], []]
    order = [together[index] for index in generator.permutation(len(together))]
    order.sort(key=len, reverse=True)
    for num_done, rows in enumerate(order):
        counts = shares.count(rows)
        empty = [place for place in places if not parts[place]]
        # The last groups are for the parts that would go without.
        choices = empty if len(empty) == len(order) - num_done else places
        best = min(choices, key=lambda place, counts=counts: shares.strain(place, counts))  # type: ignore[misc]
        parts[best] += rows
        shares.take(best, counts)
    train, validation, test = (images.take(sorted(part)) for part in parts)
    return Split(train, validation, test)


class _Shares:
    """How far each part is from its share of every class, and of all rows.

    Measured as chi-square does: the square of what is missing, over the share.
    """

    def __init__(self, keys: Sequence[str], fractions: tuple[float, float]) -> None:
        self._keys = keys
        self._wanted: dict[str | None, list[float]] = {}
        for key, count in self.count(range(len(keys))):
            held_out = [float(_share(count, fraction)) for fraction in fractions]
            self._wanted[key] = [max(1.0, count - sum(held_out)), *held_out]
        self._missing = {key: list(wanted) for key, wanted in self._wanted.items()}

    def count(self, rows: Sequence[int]) -> list[tuple[str | None, int]]:
        """Count the classes of some rows; None stands for all of them."""
        return [(None, len(rows)), *Counter(self._keys[row] for row in rows).items()]

    def strain(self, part: int, counts: Sequence[tuple[str | None, int]]) -> float:
        """Return by how much rows would take a part from its shares; negative if nearer."""
        return sum(
            count * (count - 2 * self._missing[key][part]) / self._wanted[key][part]
            for key, count in counts
        )

    def take(self, part: int, counts: Sequence[tuple[str | None, int]]) -> None:
        """Note that a part has some rows."""
        for key, count in counts:
            self._missing[key][part] -= count


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
        num_folds: How many; each row is in one validation part.
        stratify: Give every class the same share of each fold, as far as groups allow.
        seed: The same seed and data give the same folds.
        groups: As for `split_images`.

    Returns:
        For each fold the rest to train on, and the fold to validate on.

    Raises:
        InputError: There are not enough rows, groups or images of a class.
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
    """Refuse a split in which something cannot be learned, chosen by or measured.

    Every split must have images, and every label must be in the splits that the task names in its
    `label_coverage`.

    Raises:
        InputError: Naming the class and the part.
    """
    for name, part in split.by_name.items():
        if not len(part):
            raise InputError(f"The {name} part has no images; change the fractions or the groups.")
    kind = task_class(task)
    if kind.label_coverage == "none":
        return
    found = {
        name: set(itertools.chain.from_iterable(map(kind.labels_in, part.labels)))
        for name, part in split.by_name.items()
    }
    needed = SPLIT_NAMES if kind.label_coverage == "all" else SPLIT_NAMES[:1]
    for label in sorted(set().union(*found.values())):
        for name in needed:
            if label not in found[name]:
                raise InputError(
                    f"Class {label!r} has no image in the {name} part; add images or groups of "
                    "it, take another seed, or remove the class."
                )


# --- keep -------------------------------------------------------------------------------------


def write_split(
    split: Split, location: str, *, data_digest: str | None = None, seed: int | None = None
) -> None:
    """Write which row is in which part as one Parquet file; never over another.

    Args:
        split: The parts.
        location: Of the file.
        data_digest: Of the rows before they were divided.
        seed: That the split was made with, if it was.

    Raises:
        OutputExistsError: There is a file already.
        InputError: It cannot be written.
    """
    parts = split.by_name
    columns = {
        "uri": [uri for part in parts.values() for uri in part.uris],
        "version": [version for part in parts.values() for version in part.versions],
        "label": [text for part in parts.values() for text in part.labels],
        "part": [name for name, part in parts.items() for _ in part.uris],
    }
    known = {"data_digest": data_digest, "seed": None if seed is None else str(seed)}
    metadata = {
        "format": _FORMAT,
        "split_digest": split.digest,
        **{f"{name}_digest": part.digest for name, part in parts.items()},
        **{name: value for name, value in known.items() if value is not None},
    }
    table = pa.table(columns, schema=SPLIT_SCHEMA).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    try:
        is_new = storage.put_if_absent(location, buffer.getvalue())
    except OSError as error:
        raise InputError(
            f"The split cannot be written to {location} ({error.strerror or error})."
        ) from error
    if not is_new:
        raise OutputExistsError(
            f"{location} is there already, and a split is kept; name another file."
        )


def read_split(location: str, images: LabelledImages) -> Split:
    """Divide the data as a file says.

    Rows are known by location and label. Other attributes than when it was written do not
    matter; other contents do, where versions tell.

    Args:
        location: Of a file that `write_split` made.
        images: All rows, in any order.

    Raises:
        InputError: It is no such file, or is of other rows; the sentence says what differs.
    """
    table = _read_split_table(location)
    _require_same_rows(location, table, images)
    parts = dict(zip(table["uri"], table["part"], strict=True))
    rows: dict[str, list[int]] = {name: [] for name in SPLIT_NAMES}
    for row, uri in enumerate(images.uris):
        rows[parts[uri]].append(row)
    return Split(*(images.take(rows[name]) for name in SPLIT_NAMES))


def read_named_split(location: str, part: str) -> LabelledImages:
    """Read one part of a split file, as it was when the file was written.

    Args:
        location: Of a file that `write_split` made.
        part: `train`, `validation` or `test`.

    Raises:
        InputError: It is no such file, or the part has no images.
        UnknownNameError: There is no such part.
    """
    if part not in SPLIT_NAMES:
        raise UnknownNameError("part", part, SPLIT_NAMES)
    table = _read_split_table(location)
    rows = [row for row, name in enumerate(table["part"]) if name == part]
    if not rows:
        raise InputError(f"The {part} part of {location} has no images.")
    uris, labels, versions = (
        tuple(table[column][row] for row in rows) for column in ("uri", "label", "version")
    )
    return LabelledImages(uris, labels, versions)


def take_named_split(images: LabelledImages, part: str, where: str) -> LabelledImages:
    """Return one part of data that come divided.

    Raises:
        InputError: They do not, or the part has no images.
        UnknownNameError: There is no such part.
    """
    if part not in SPLIT_NAMES:
        raise UnknownNameError("part", part, SPLIT_NAMES)
    rows = [row for row, name in enumerate(images.splits) if name == part]
    if not rows:
        known = ", ".join(dict.fromkeys(images.splits)) or "not divided"
        raise InputError(f"{where} has no {part} part: it is {known}.")
    return replace(images.take(rows), notes=images.notes)


def _read_split_table(location: str) -> dict[str, list[str]]:
    try:
        with open_parquet(location) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"format") != _FORMAT.encode():
                raise InputError(f"{location} is no split file of Eagleray ({_FORMAT}).")
            table: dict[str, list[str]] = file.read(SPLIT_SCHEMA.names).to_pydict()
    except FileNotFoundError:
        raise InputError(f"There is no split file {location}; check the path.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{location} is a damaged split file ({error}); copy it again.") from None
    placed = set(zip(table["uri"], table["part"], strict=True))
    if len(placed) > len(set(table["uri"])):
        uri = next(uri for uri, count in Counter(uri for uri, _ in placed).items() if count > 1)
        raise InputError(f"The split {location} has {uri} in more than one part.")
    unknown = sorted({part for _, part in placed} - set(SPLIT_NAMES))
    if unknown:
        raise InputError(f"The split {location} has a part {unknown[0]!r}, which nobody knows.")
    return table


def _require_same_rows(location: str, table: dict[str, list[str]], images: LabelledImages) -> None:
    written = _labels_by_uri(table["uri"], table["label"])
    labels = _labels_by_uri(images.uris, images.labels)
    versions = dict(zip(table["uri"], table["version"], strict=True))
    common = [uri for uri in written if uri in labels]
    now = dict(zip(images.uris, images.versions, strict=True))
    differences = {
        "gone": [uri for uri in written if uri not in labels],
        "new": [uri for uri in labels if uri not in written],
        "relabelled": [uri for uri in common if written[uri] != labels[uri]],
        "changed": [
            uri for uri in common if versions[uri] and now[uri] and versions[uri] != now[uri]
        ],
    }
    said = [
        f"{len(uris):,} {what}, {'first' if len(uris) > 1 else 'namely'} {uris[0]}"
        for what, uris in differences.items()
        if uris
    ]
    if said:
        raise InputError(
            f"The split {location} is of other data ({'; '.join(said)}); write a new split, or go "
            "back to the data that it was made of."
        )


def _labels_by_uri(uris: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for uri, label in sorted(zip(uris, labels, strict=True)):
        found.setdefault(uri, []).append(label)
    return found
