"""Splits of labelled data: all rows once, groups whole, kept in a file that is checked."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagleray.core.errors import InputError, OutputExistsError, UnknownNameError
from eagleray.data.groups import merge_groups
from eagleray.data.labelled import LabelledImages
from eagleray.data.split import (
    SPLIT_NAMES,
    Split,
    fold_images,
    require_complete_split,
    split_images,
)
from eagleray.data.split_file import (
    SPLIT_SCHEMA,
    read_named_split,
    read_split,
    take_named_split,
    write_split,
)
from tests.support.labelled import labelled


def divide(images: LabelledImages, *, seed: int = 0, **change: object) -> Split:
    options: dict[str, object] = {
        "stratify": True,
        "validation_fraction": 0.1,
        "test_fraction": 0.2,
        **change,
    }
    return split_images(images, seed=seed, **options)  # type: ignore[arg-type]


def split_of(split: Split) -> dict[str, str]:
    return {uri: name for name, subset in split.by_name.items() for uri in subset.uris}


# --- divide -----------------------------------------------------------------------------------


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 60), min_size=2),
    st.integers(0, 2**31),
)
def test_a_split_uses_every_row_once_and_every_class_everywhere(
    counts: dict[str, int], seed: int
) -> None:
    images = labelled(**counts)
    split = divide(images, seed=seed)
    assert sorted(uri for subset in split.by_name.values() for uri in subset.uris) == sorted(
        images.uris
    )
    require_complete_split(split, "multiclass")
    for label, count in counts.items():
        assert abs(Counter(split.test.labels)[label] - 0.2 * count) <= 1


def test_a_split_depends_on_the_seed_alone() -> None:
    images = labelled(a=30, b=30)
    assert divide(images, seed=1) == divide(images, seed=1)
    assert divide(images, seed=1).digest != divide(images, seed=2).digest


def test_the_digest_tells_which_row_is_in_which_split() -> None:
    split = divide(labelled(a=30, b=30))
    assert Split(split.validation, split.train, split.test).digest != split.digest
    assert split.test.digest in {subset.digest for subset in split.by_name.values()}


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), min_size=30, max_size=120),
    st.booleans(),
    st.integers(0, 100),
)
def test_a_group_is_never_cut(rows: list[tuple[str, int]], stratify: bool, seed: int) -> None:
    groups = tuple("" if number == 0 else f"g{number}" for _, number in rows)
    uris = tuple(f"{row}.png" for row in range(len(rows)))
    images = LabelledImages(uris, tuple(label for label, _ in rows), ("",) * len(rows))
    if len(set(groups) - {""}) + groups.count("") < 3:
        return
    split = divide(images, seed=seed, stratify=stratify, groups=groups)
    splits = split_of(split)
    assert set(splits) == set(uris)
    assert all(len(subset) for subset in split.by_name.values())
    for key in set(groups) - {""}:
        assert (
            len({splits[uri] for uri, group in zip(uris, groups, strict=True) if group == key}) == 1
        )


def test_groups_come_near_to_shares_and_classes() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 9, 400)
    groups = tuple(f"g{index}" for index, size in enumerate(sizes) for _ in range(size))
    labels = tuple(str(generator.choice(["a", "b", "c"], p=[0.7, 0.2, 0.1])) for _ in groups)
    uris = tuple(f"{row}.png" for row in range(len(groups)))
    split = divide(LabelledImages(uris, labels, ("",) * len(uris)), groups=groups)
    for subset, share in zip(split.by_name.values(), (0.7, 0.1, 0.2), strict=True):
        assert len(subset) / len(uris) == pytest.approx(share, abs=0.005)
        for label, count in Counter(labels).items():
            assert Counter(subset.labels)[label] / count == pytest.approx(share, abs=0.02)


def test_a_large_group_is_placed_first_and_small_ones_make_up_for_it() -> None:
    groups = tuple("film" if row >= 60 else "" for row in range(160))
    for seed in range(5):
        split = divide(labelled(a=160), groups=groups, seed=seed)
        assert [len(subset) for subset in split.by_name.values()] == [112, 16, 32]


def test_rows_of_one_image_stay_together_without_groups() -> None:
    uris = tuple(f"{row // 2}.png" for row in range(60))
    images = LabelledImages(uris, ("a", "b") * 30, ("",) * 60)
    split = divide(images)
    for one, other in itertools.combinations(split.by_name.values(), 2):
        assert not set(one.uris) & set(other.uris)
    assert [len(subset) for subset in split.by_name.values()] == [42, 6, 12]


def test_a_split_that_is_to_be_empty_is_empty() -> None:
    images = labelled(a=20, b=20)
    groups = tuple(str(row // 2) for row in range(40))
    for split in (
        divide(images, test_fraction=0.0),
        divide(images, test_fraction=0.0, groups=groups),
    ):
        assert [len(subset) for subset in split.by_name.values()] == [36, 4, 0]


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(InputError, match="in 2 groups that stay together, too few for 3 splits"):
        divide(labelled(a=10), groups=("x", "y") * 5)


def test_groups_of_groups_are_merged() -> None:
    merged = merge_groups(("a", "a", "", "", ""), ("", "b", "b", "", "c"))
    assert merged[0] == merged[1] == merged[2] != ""
    assert merged[3:] == ("", "")


# --- folds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_folds_validate_every_row_once(stratify: bool, grouped: bool) -> None:
    images = labelled(a=40, b=20)
    groups = tuple(str(row // 4) for row in range(60)) if grouped else None
    folds = fold_images(images, 5, stratify=stratify, seed=0, groups=groups)
    assert sorted(uri for _, subset in folds for uri in subset.uris) == sorted(images.uris)
    for train, validation in folds:
        assert not set(train.uris) & set(validation.uris)
        assert len(train) + len(validation) == 60
        if stratify:
            assert Counter(validation.labels) == {"a": 8, "b": 4}
        if groups:
            group_of = dict(zip(images.uris, groups, strict=True))
            assert not {group_of[uri] for uri in train.uris} & {
                group_of[uri] for uri in validation.uris
            }
    again = fold_images(images, 5, stratify=stratify, seed=0, groups=groups)
    assert again == folds


@pytest.mark.parametrize(
    ("num_folds", "groups", "sentence"),
    [
        (1, None, "needs 2 folds or more, not 1"),
        (5, ("x", "y") * 6, "5 folds need as many groups of images, and there are 2"),
        (5, None, "Class 'rare' has 2 images, too few for 5 folds"),
    ],
)
def test_folds_that_cannot_be_are_one_sentence(
    num_folds: int, groups: tuple[str, ...] | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        fold_images(labelled(common=10, rare=2), num_folds, stratify=True, seed=0, groups=groups)


# --- what each split must have ----------------------------------------------------------------


def test_a_class_that_a_split_lacks_is_named() -> None:
    train, validation = labelled(a=3, b=3), labelled(a=1)
    with pytest.raises(InputError, match="Class 'b' has no image in the validation split"):
        require_complete_split(Split(train, validation, train), "multiclass")
    with pytest.raises(InputError, match="The test split has no images"):
        require_complete_split(Split(train, validation, train.take([])), "regression")


def test_a_label_must_be_learned_and_may_be_rare() -> None:
    both = LabelledImages(("1",), ("a|b",), ("",))
    one = LabelledImages(("2",), ("a",), ("",))
    require_complete_split(Split(both, one, one), "multilabel")
    with pytest.raises(InputError, match="Class 'b' has no image in the train split"):
        require_complete_split(Split(one, both, one), "multilabel")


# --- kept -------------------------------------------------------------------------------------

TEXT = st.text(max_size=5).filter(lambda text: not any(map(_is_half, text)))


def _is_half(character: str) -> bool:
    return 0xD800 <= ord(character) <= 0xDFFF


@settings(max_examples=50)
@given(
    st.dictionaries(TEXT, st.tuples(TEXT, TEXT, st.sampled_from(SPLIT_NAMES)), max_size=20),
    st.none() | st.integers(0, 2**40),
)
def test_a_split_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, tuple[str, str, str]],
    seed: int | None,
) -> None:
    labels, versions, names = zip(*rows.values(), strict=True) if rows else ((), (), ())
    images = LabelledImages(tuple(rows), labels, versions, {"camera": ("x",) * len(rows)})
    split = Split(
        *(
            images.take([row for row, subset in enumerate(names) if subset == name])
            for name in SPLIT_NAMES
        )
    )
    location = str(tmp_path_factory.mktemp("split") / "s.parquet")
    write_split(split, location, data_digest=images.digest, seed=seed)
    assert read_split(location, images) == split
    table = pq.read_table(location)
    assert table.column_names == ["uri", "version", "label", "split"]
    assert table.schema.metadata[b"test_digest"].decode() == split.test.digest
    assert table.schema.metadata[b"data_digest"].decode() == images.digest
    assert table.schema.metadata.get(b"seed") == (None if seed is None else str(seed).encode())


@pytest.fixture
def kept(tmp_path: Path) -> str:
    location = str(tmp_path / "s.parquet")
    write_split(divide(labelled(a=10, b=10)), location)
    return location


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"uris": "-"}, "1 gone, namely /images/3.png; 1 new, namely -"),
        ({"labels": "b"}, "1 relabelled, namely /images/3.png"),
        ({"versions": "2"}, "1 changed, namely /images/3.png"),
    ],
)
def test_a_split_of_other_data_says_what_differs(
    kept: str, change: dict[str, str], sentence: str
) -> None:
    images = labelled(a=10, b=10)
    ((name, value),) = change.items()
    values = list(getattr(images, name))
    values[3] = value
    with pytest.raises(InputError, match=r"^[^\n]+$") as caught:
        read_split(kept, replace(images, **{name: tuple(values)}))  # type: ignore[arg-type]
    assert sentence in str(caught.value)


def test_order_attributes_and_unknown_versions_are_no_difference(kept: str) -> None:
    images = labelled(a=10, b=10)
    reordered = replace(
        images.take(list(range(19, -1, -1))), versions=("",) * 20, attributes={"x": ("y",) * 20}
    )
    assert split_of(read_split(kept, reordered)) == split_of(read_split(kept, images))


def test_a_split_file_keeps_the_attributes_that_are_named(tmp_path: Path) -> None:
    ages = tuple(str(row) for row in range(20))
    columns = {"age": ages, "split": ("x",) * 20, "secret": ages}
    images = replace(labelled(a=10, b=10), attributes=columns)
    split, location = divide(images), str(tmp_path / "s.parquet")
    write_split(split, location, attributes=["age", "split"])
    test = read_named_split(location, "test")
    assert test.attributes == {name: split.test.attributes[name] for name in ("age", "split")}
    assert (test.uris, test.digest) == (split.test.uris, split.test.digest)
    assert read_split(location, images) == split


def test_a_message_on_a_missing_split_lists_those_that_there_are(tmp_path: Path) -> None:
    images = replace(labelled(a=3), splits=("train", "test", "train"))
    with pytest.raises(InputError, match="data has no validation split: it has train and test"):
        take_named_split(images, "validation", "data")
    with pytest.raises(UnknownNameError, match=r"No split is named 'dev'\..* data has train and"):
        take_named_split(images, "dev", "data")
    with pytest.raises(UnknownNameError, match=r"data has no splits\."):
        take_named_split(labelled(a=3), "dev", "data")
    empty = images.take([])
    location = str(tmp_path / "s.parquet")
    write_split(Split(images.take([0]), empty, images.take([1])), location)
    with pytest.raises(InputError, match="parquet has no validation split: it has train and"):
        read_named_split(location, "validation")
    with pytest.raises(UnknownNameError, match=r"parquet has train and test\."):
        read_named_split(location, "dev")


def test_a_split_is_never_overwritten(kept: str) -> None:
    with pytest.raises(OutputExistsError, match="a split is kept"):
        write_split(divide(labelled(a=5, b=5)), kept)


def test_what_is_no_split_file_is_one_sentence(tmp_path: Path, kept: str) -> None:
    with pytest.raises(InputError, match="There is no split file"):
        read_split(str(tmp_path / "none.parquet"), labelled(a=3))
    pq.write_table(pa.table({"uri": ["a"], "split": ["train"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="is not a split file of Eagleray"):
        read_split(str(tmp_path / "other.parquet"), labelled(a=3))
    (tmp_path / "half.parquet").write_bytes(Path(kept).read_bytes()[:-20])
    with pytest.raises(InputError, match="is not a whole Parquet file"):
        read_split(str(tmp_path / "half.parquet"), labelled(a=3))
    table = pq.read_table(kept)
    elsewhere = table.set_column(3, SPLIT_SCHEMA.field("split"), pa.array(["test"] * 20))
    doubled = pa.concat_tables([table, elsewhere])
    pq.write_table(doubled, tmp_path / "doubled.parquet")
    with pytest.raises(InputError, match="in more than one split"):
        read_split(str(tmp_path / "doubled.parquet"), labelled(a=10, b=10))


def test_a_split_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    images = labelled(a=10, b=10)
    split = divide(images)
    kept, earlier = str(tmp_path / "kept.parquet"), str(tmp_path / "earlier.parquet")
    write_split(split, kept)
    table = pq.read_table(kept).rename_columns(["uri", "version", "label", "part"])
    pq.write_table(table.replace_schema_metadata({"format": "eagleray-split/1"}), earlier)
    assert read_split(earlier, images) == split
    assert read_named_split(earlier, "test").uris == split.test.uris
