"""The image contract: a value with one spelling and one digest, refused by the field at fault."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from eagleray.core.errors import ContractError, UnknownNameError
from eagleray.imaging import (
    FORMATS,
    NAMED_CONTRACTS,
    Exact,
    ImageContract,
    Letterbox,
    ShortestSide,
    named_contract,
)
from eagleray.imaging.contract import MAX_PIXELS, ORIGINAL_FORMATS, Color, canonical_json
from eagleray.models.architectures import default_contract

sides = st.integers(1, 4096)
crops = st.tuples(sides, sides)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
ranges = st.tuples(finite, finite).filter(lambda pair: pair[0] < pair[1])


_CROPS: dict[type, st.SearchStrategy[tuple[int, int] | None]] = {
    ShortestSide: crops,
    Exact: st.none() | crops,
    Letterbox: st.none(),
}


@st.composite
def contracts(draw: st.DrawFn) -> ImageContract:
    """Any valid contract."""
    color: Color = draw(st.sampled_from(["rgb", "gray"]))
    channels = 3 if color == "rgb" else 1
    resize: ShortestSide | Exact | Letterbox = draw(
        st.one_of(
            st.builds(ShortestSide, size=sides),
            st.builds(Exact, height=sides, width=sides),
            st.builds(Letterbox, height=sides, width=sides, fill=st.integers(0, 255)),
        )
    )
    return ImageContract(
        formats=draw(st.lists(st.sampled_from(FORMATS), min_size=1).map(tuple)),
        color=color,
        value_range=draw(st.none() | ranges),
        alpha=draw(st.sampled_from(["drop", "white", "black"])),
        resize=resize,
        crop=draw(_CROPS[type(resize)]),
        resampler=draw(
            st.sampled_from(
                [
                    "pillow_nearest",
                    "pillow_bilinear",
                    "pillow_bicubic",
                    "pillow_lanczos",
                    "opencv_linear",
                    "opencv_area",
                ]
            )
        ),
        jpeg=draw(st.sampled_from(["exact", "scaled"])),
        max_bytes=draw(st.integers(1, 2**31)),
        max_pixels=draw(st.integers(1, MAX_PIXELS)),
        mean=draw(st.tuples(*[finite] * channels)),
        std=draw(st.tuples(*[positive] * channels)),
    )


def fields(contract: ImageContract) -> dict[str, Any]:
    return {name: getattr(contract, name) for name in ImageContract.model_fields}


def json_with(**changes: Any) -> str:
    """Return the JSON of a valid contract with some fields changed; `...` removes one."""
    valid = json.loads(named_contract("torchvision-reference").to_json())
    changed = {**valid, **changes}
    return json.dumps({name: value for name, value in changed.items() if value is not ...})


# --- one value, one spelling, one digest ---


@given(contracts())
def test_a_contract_survives_its_json(contract: ImageContract) -> None:
    again = ImageContract.from_json(contract.to_json())
    assert again == contract
    assert again.digest == contract.digest


@given(contracts(), contracts(), st.sampled_from(sorted(ImageContract.model_fields)))
def test_contracts_are_equal_exactly_when_their_digests_are(
    one: ImageContract, other: ImageContract, name: str
) -> None:
    assert (one == other) == (one.digest == other.digest)
    try:
        neighbour = ImageContract(**{**fields(one), name: getattr(other, name)})
    except ValidationError:
        assume(False)
    assert (one == neighbour) == (one.digest == neighbour.digest)


@given(contracts(), st.integers(), st.sampled_from([None, 1, 4]))
def test_any_order_of_keys_and_any_spaces_give_the_same_digest(
    contract: ImageContract, seed: int, indent: int | None
) -> None:
    items = list(json.loads(contract.to_json()).items())
    random.Random(seed).shuffle(items)
    again = ImageContract.from_json(json.dumps(dict(items), indent=indent))
    assert again.to_json() == contract.to_json()
    assert again.digest == contract.digest


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("[0, 0, 0]", "[0.0,0.0,0.0]"),
        ("[-0.0, 0.0, -0]", "[0.0,0.0,0.0]"),
        ("[5e-1, 0.50, 0.5000]", "[0.5,0.5,0.5]"),
        ("[485e-3, 0.456, 0.406]", "[0.485,0.456,0.406]"),
    ],
)
def test_a_number_has_one_spelling(written: str, spelled: str) -> None:
    text = named_contract("fast").to_json()
    assert '"mean":[0.485,0.456,0.406]' in text
    contract = ImageContract.from_json(text.replace("[0.485,0.456,0.406]", written))
    assert f'"mean":{spelled},' in contract.to_json()


def test_canonical_json_is_sorted_ascii_without_spaces() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"\\u00fc","b":[1,2.5]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_canonical_json_has_no_spelling_for_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


def test_a_contract_cannot_be_changed() -> None:
    contract = named_contract("torchvision-reference")
    with pytest.raises(ValidationError, match="frozen"):
        contract.jpeg = "scaled"
    with pytest.raises(ValidationError, match="frozen"):
        contract.resize.mode = "exact"
    assert hash(contract) == hash(named_contract("torchvision-reference"))


# --- the named ones ---

DIGESTS = {
    ("torchvision-reference", "rgb"): (
        "5de7ba8788a36bc6d6736602541111006e6016f07051637402a08ee3a85f2733"
    ),
    ("torchvision-reference", "gray"): (
        "e44f4a7c1e3285de9d2b7c3039047372087721fe273f729720046c55f35536a3"
    ),
    ("fast", "rgb"): ("76347dc1f953b6cc7c0ef8a77e7b9f2333d618b6e76a7f3c73b6636160dbacfb"),
    ("fast", "gray"): ("4b934f8606263227a324da1e18350ac439de348f6f708ef561a2d74858d2b5df"),
    ("whole-image", "rgb"): ("70d2283affb7a11ab83846a4123739c5f750c957023f5e435ecf629085cd9898"),
    ("whole-image", "gray"): ("77327ad3098780bf6b95d4604cc0e7c24923da55587931da48245f7aac35f098"),
    ("letterbox", "rgb"): ("825bfae9fe97a78929697df1a6cd2246c6a7138ef2748092a338fc8a739a759c"),
    ("letterbox", "gray"): ("261d6515cc02dfd36349b6877a1e83bbce5dbb195fc6323aebb4062df0c7ab57"),
}
"""Every model ever made under a name carries one of these: a change here orphans them all."""


@pytest.mark.parametrize(("name", "color"), list(DIGESTS))
def test_a_named_contract_never_changes(name: str, color: Color) -> None:
    assert named_contract(name, color=color).digest == DIGESTS[name, color]


def test_a_contract_made_before_there_were_more_formats_reads_none_of_them() -> None:
    text = json_with()
    assert "formats" not in text
    assert "value_range" not in text
    contract = ImageContract.from_json(text)
    assert contract.formats == ORIGINAL_FORMATS
    assert "heic" not in contract.formats
    assert contract.to_json() == named_contract("torchvision-reference").to_json()


def test_formats_have_one_order_and_count_in_the_digest() -> None:
    one = named_contract("fast", formats=("heic", "jpeg", "jpeg"))
    assert one.formats == ("jpeg", "heic")
    assert one == named_contract("fast", formats=("jpeg", "heic"))
    assert '"formats":["jpeg","heic"]' in one.to_json()
    assert one.digest != named_contract("fast").digest


def test_models_that_are_made_now_read_every_format() -> None:
    for name in ("lenet5", "resnet18"):
        assert default_contract(name).formats == FORMATS
        assert default_contract(name, "fast", size=64).formats == FORMATS


def test_every_named_contract_is_pinned() -> None:
    assert {name for name, _color in DIGESTS} == set(NAMED_CONTRACTS)


@pytest.mark.parametrize(
    ("size", "resize", "shorter_side"), [(224, None, 256), (32, None, 37), (299, 342, 342)]
)
def test_the_side_before_the_crop_is_256_224ths_unless_given(
    size: int, resize: int | None, shorter_side: int
) -> None:
    contract = named_contract("torchvision-reference", size=size, resize=resize)
    assert contract.resize == ShortestSide(size=shorter_side)
    assert contract.crop == (size, size)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("fsat", ["fast"]),
        ("Torchvision_Reference", ["torchvision-reference"]),
        ("whole", ["whole-image"]),
        ("qqq", []),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, nearest: list[str]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        named_contract(name)
    assert caught.value.nearest == nearest
    message = str(caught.value)
    assert message.startswith(f"No image contract is named {name!r}.")
    assert message.endswith("Known: torchvision-reference, fast, whole-image, letterbox.")
    assert ("Nearest: " in message) == bool(nearest)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("torchvision-reference", 0, "size must be greater than or equal to 1"),
        ("fast", 100_000, "size must be less than or equal to 8192"),
        ("whole-image", -1, "height must be greater than or equal to 1"),
    ],
)
def test_a_size_that_makes_no_contract_is_refused(name: str, size: int, expected: str) -> None:
    with pytest.raises(ContractError) as caught:
        named_contract(name, size=size)
    assert str(caught.value) == f"Contract {name!r}: {expected}."


# --- what a model reads off its contract ---


@pytest.mark.parametrize(
    ("changes", "size", "channels"),
    [
        ({}, (224, 224), 3),
        ({"crop": (10, 20)}, (10, 20), 3),
        ({"resize": Exact(height=30, width=40), "crop": None}, (30, 40), 3),
        ({"resize": Exact(height=30, width=40), "crop": (5, 6)}, (5, 6), 3),
        ({"color": "gray", "mean": (0.5,), "std": (0.5,)}, (224, 224), 1),
    ],
)
def test_size_channels_and_shape_are_those_of_the_result(
    changes: dict[str, Any], size: tuple[int, int], channels: int
) -> None:
    contract = ImageContract(**{**fields(named_contract("torchvision-reference")), **changes})
    assert contract.size == size
    assert contract.channels == channels
    assert contract.shape == (*size, channels)


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json_with(version=2), "version must be 1"),
        (json_with(version="1"), "version must be 1"),
        (json_with(color="cmyk"), "color must be 'rgb' or 'gray'"),
        (json_with(orientation="none"), "orientation must be 'exif'"),
        (json_with(alpha="red"), "alpha must be 'drop', 'white' or 'black'"),
        (json_with(resize=...), "resize is required"),
        (json_with(resize=256), "resize must be an object"),
        (json_with(resize={"size": 256}), "resize: Unable to extract tag"),
        (json_with(resize={"mode": "fit", "size": 9}), "resize: Input tag 'fit' found"),
        (
            json_with(resize={"mode": "shortest_side", "size": 0}),
            "resize.shortest_side.size must be greater than or equal to 1",
        ),
        (
            json_with(resize={"mode": "exact", "height": 8193, "width": 1}),
            "resize.exact.height must be less than or equal to 8192",
        ),
        (
            json_with(resize={"mode": "exact", "height": 1, "width": "1"}),
            "resize.exact.width must be a valid integer",
        ),
        (json_with(crop=[224]), "crop.1 is required"),
        (json_with(crop=[224, 224.5]), "crop.1 must be a valid integer"),
        (json_with(crop=[0, 224]), "crop.0 must be greater than or equal to 1"),
        (json_with(crop=None), "resize to the shortest side needs a crop"),
        (json_with(resampler="pillow_box"), "resampler must be 'pillow_nearest',"),
        (json_with(jpeg="quick"), "jpeg must be 'exact' or 'scaled'"),
        (json_with(max_bytes=0), "max_bytes must be greater than or equal to 1"),
        (json_with(max_bytes=True), "max_bytes must be a valid integer"),
        (json_with(max_pixels=-5), "max_pixels must be greater than or equal to 1"),
        (json_with(mean=[0.5]), "mean has 1 values, but color 'rgb' has 3 channels"),
        (json_with(color="gray"), "mean has 3 values, but color 'gray' has 1 channels"),
        (json_with(mean=[0, 0, float("nan")]), "mean: every value must be a finite number"),
        (json_with(mean=["0", 0, 0]), "mean.0 must be a valid number"),
        (json_with(std=[1, 1]), "std has 2 values, but color 'rgb' has 3 channels"),
        (json_with(std=[1, 1, 0]), "std must be above 0 for every channel"),
        (json_with(std=[1, 1, -1]), "std must be above 0 for every channel"),
        (json_with(std=[1, 1, float("inf")]), "std: every value must be a finite number"),
        (json_with(dtype="float32"), "dtype must be 'uint8'"),
        (json_with(layout="CHW"), "layout must be 'HWC'"),
        (json_with(formats=[]), "formats: name at least one format"),
        (json_with(formats=["heif"]), "formats.0 must be 'jpeg', 'png', 'webp',"),
        (json_with(value_range=[5, 5]), "value_range: the first value must be below the second"),
        (json_with(value_range=[0, float("inf")]), "value_range.1 must be a finite"),
        (json_with(sharpen=True), "sharpen is not a known field"),
        ("", "Invalid JSON: EOF while parsing a value"),
        ("{", "Invalid JSON: EOF while parsing an object"),
        ("[]", "it must be an object"),
    ],
)
def test_an_invalid_contract_is_refused_by_the_field_at_fault(text: str, expected: str) -> None:
    with pytest.raises(ContractError) as caught:
        ImageContract.from_json(text)
    assert str(caught.value).startswith(f"The image contract is not valid: {expected}")
    assert "\n" not in str(caught.value)
