"""Model packages: they are read as written; other files are refused, and never executed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from eagleray.core.errors import EaglerayError, PackageError, UserError
from eagleray.imaging import named_contract
from eagleray.inference.health import GoldenCheck
from eagleray.inference.predictor import Predictor
from eagleray.models.architectures import Architecture
from eagleray.models.building import build
from eagleray.models.golden import GOLDEN_TOLERANCE
from eagleray.models.package import (
    WEIGHTS_FILE,
    ModelPackage,
    read_package,
    write_package,
)
from eagleray.tasks import Multiclass
from tests.support.models import (
    DIGITS,
    golden_png,
    lenet,
    lenet_module,
    small_package,
)

pytestmark = pytest.mark.numerical

Manifest = dict[str, Any]
ONE_SENTENCE = r"^[^\n]+$"


def stored(
    tmp_path: Path,
    *,
    files: Mapping[str, bytes] = MappingProxyType({}),
    unlisted: Mapping[str, bytes] = MappingProxyType({}),
    drop: tuple[str, ...] = (),
    change: Callable[[Manifest], object] = lambda _: None,
) -> str:
    """Write a good package, then make it what a test wants.

    `files` are written and listed with their true digests, `unlisted` are only written.
    """
    folder = tmp_path / "digits"
    write_package(small_package(), str(folder))
    manifest = json.loads((folder / "model.json").read_text())
    for name, content in {**files, **unlisted}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for name, content in files.items():
        manifest["files"][name] = hashlib.sha256(content).hexdigest()
    for name in drop:
        (folder / name).unlink()
    change(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))
    return str(folder)


def check_golden(package: ModelPackage, tmp_path: Path) -> GoldenCheck:
    predictor = Predictor(
        package,
        device="cpu",
        precision="float32",
        engine="eager",
        num_threads=1,
        cache_folder=tmp_path / "cache",
    )
    return predictor.check_golden()


# --- writing and reading ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "{tmp}/digits",
        "{tmp}/digits/",
        "{tmp}/a b%20c #?*::é/digits",
        "file://{tmp}/digits",
        "memory://{tmp}/digits",
        "memory://digits-at-the-root",
    ],
)
def test_what_is_written_comes_back(tmp_path: Path, place: str) -> None:
    package = small_package()
    folder = place.format(tmp=tmp_path)
    write_package(package, folder)
    again = read_package(folder, expected_digest=package.digest)
    assert again.manifest == package.manifest
    assert dict(again.files) == dict(package.files)
    assert again.digest == package.digest
    weights = again.build_module().state_dict()
    for name, weight in lenet_module().state_dict().items():
        assert torch.equal(weights[name], weight)


def test_a_folder_may_be_named_from_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_package("digits").digest == read_package(f"./digits/../{Path(folder).name}").digest


def test_a_package_is_these_files_and_no_others(tmp_path: Path) -> None:
    folder = Path(stored(tmp_path))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert names == [
        "golden.json",
        "golden/00.png",
        "golden/01.png",
        "golden/02.png",
        "model.json",
        "model.safetensors",
    ]


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(
        "eagleray.io.storage.put_atomic", lambda location, _: written.append(Path(location).name)
    )
    write_package(small_package(), str(tmp_path))
    assert written[-1] == "model.json"
    assert len(written) == 6


def test_the_digest_does_not_depend_on_how_the_json_is_laid_out(tmp_path: Path) -> None:
    folder = Path(stored(tmp_path))
    expected = small_package().digest
    manifest = json.loads((folder / "model.json").read_text())
    for text in (
        json.dumps(manifest, indent=7),
        json.dumps(manifest, separators=(",", ":")),
        json.dumps(dict(reversed(manifest.items()))),
        json.dumps(manifest).replace('"accuracy": 0.5', '"accuracy": 5.00e-1'),
        json.dumps({key: value for key, value in manifest.items() if key != "format"}),
    ):
        (folder / "model.json").write_text(text)
        assert read_package(str(folder)).digest == expected


def test_the_digest_changes_with_everything_that_a_model_is() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"name": "other"},
        {"module": lenet_module(3, seed=1)},
        {"metrics": {"accuracy": 0.6}},
        {"hierarchy": {"zero": "even"}},
        {"task": Multiclass(labels=("one", "zero", "two"))},
        {"contract": named_contract("fast", size=32, color="gray")},
        {"golden_images": [golden_png(0)]},
        {"golden_images": []},
    ]
    digests = [small_package(**change).digest for change in changes]
    assert len(set(digests)) == len(changes)
    assert small_package().digest == digests[0]


def test_golden_images_carry_the_outputs_of_the_network(tmp_path: Path) -> None:
    package = small_package()
    assert package.golden.tolerance == GOLDEN_TOLERANCE
    assert [image.file for image in package.golden.images] == [
        "golden/00.png",
        "golden/01.png",
        "golden/02.png",
    ]
    for image in package.golden.images:
        assert len(image.outputs) == 3
        assert sum(image.outputs) == pytest.approx(1, abs=1e-5)
    check = check_golden(package, tmp_path)
    assert (check.num_images, check.healthy) == (3, True)
    assert small_package(golden_images=[]).golden.images == ()


# --- parts that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"architecture": lenet(4), "module": lenet_module(4), "golden_images": []},
            "the architecture has 4 outputs, the task needs 3",
        ),
        (
            {"contract": named_contract("whole-image", size=32), "golden_images": []},
            "the architecture takes 1 channels, the contract gives 3",
        ),
        ({"name": "a b"}, "name: 'a b' cannot name a model"),
        ({"name": "../up"}, "name: '../up' cannot name a model"),
        ({"name": ""}, "name: '' cannot name a model"),
        pytest.param(
            {"metrics": {"r2": math.nan}},
            "r2",
        ),
    ],
)
def test_parts_that_do_not_fit_make_no_package(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(PackageError, match=ONE_SENTENCE) as caught:
        small_package(**change)
    assert expected in str(caught.value)


# --- refusals ---------------------------------------------------------------------------------

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no manifest", {"drop": ()}, "is not a model package: it has no model.json."),
    (
        "unknown field",
        {"change": lambda manifest: manifest.update(code="import os")},
        "model.json has the unknown field 'code'.",
    ),
    (
        "unknown nested field",
        {"change": lambda manifest: manifest["architecture"].update(factory="os.system")},
        "model.json has the unknown field 'architecture.factory'.",
    ),
    (
        "field missing",
        {"change": lambda manifest: manifest.pop("task")},
        "model.json is not valid: task is required.",
    ),
    (
        "another format",
        {"change": lambda manifest: manifest.update(format=2)},
        "model.json is not valid: format must be 1.",
    ),
    (
        "wrong digest",
        {"change": lambda manifest: manifest["files"].update({"golden/00.png": "0" * 64})},
        "golden/00.png is not the file that model.json describes (its SHA-256 differs)",
    ),
    (
        "digest that is none",
        {"change": lambda manifest: manifest["files"].update({"golden/00.png": "abc"})},
        "model.json is not valid: files.golden/00.png: String should match pattern",
    ),
    ("file missing", {"drop": ("golden/01.png",)}, "golden/01.png is missing; fetch the package"),
    ("weights missing", {"drop": ("model.safetensors",)}, "model.safetensors is missing"),
    (
        "weights not listed",
        {"change": lambda manifest: manifest["files"].pop("model.safetensors")},
        "model.json lists no model.safetensors.",
    ),
    (
        "stranger",
        {"unlisted": {"notes.txt": b"hello"}},
        "holds 'notes.txt', which model.json does not list",
    ),
    (
        "stranger in a folder",
        {"unlisted": {"golden/.hidden": b""}},
        "holds 'golden/.hidden', which model.json does not list",
    ),
    (
        "listed pickle",
        {"files": {"model.pt": b"\x80\x04N."}},
        "model.json lists 'model.pt', which is not allowed: weights are safetensors",
    ),
    ("listed code", {"files": {"model.py": b""}}, "lists 'model.py', which is not allowed"),
    (
        "listed golden code",
        {"files": {"golden/a.py": b""}},
        "lists 'golden/a.py', which is not allowed",
    ),
    (
        "manifest lists itself",
        {"change": lambda manifest: manifest["files"].update({"model.json": "0" * 64})},
        "lists 'model.json', which is not allowed",
    ),
    *(
        (
            f"listed {name!r}",
            {"change": lambda manifest, name=name: manifest["files"].update({name: "0" * 64})},
            f"lists {name!r}, which is not allowed",
        )
        for name in (
            "../x",
            "../model.safetensors",
            "/etc/passwd",
            "golden/../../x.png",
            "golden//x.png",
            "golden/x.png\n",
            "s3://bucket/x.png",
            "golden/x.png/../y.png",
            "",
        )
    ),
    (
        "another contract's digest",
        {"change": lambda manifest: manifest.update(contract_digest="0" * 64)},
        "contract_digest is not the digest of the contract",
    ),
    (
        "altered contract",
        {"change": lambda manifest: manifest["contract"].update(alpha="white")},
        "contract_digest is not the digest of the contract",
    ),
    (
        "outputs",
        {"change": lambda manifest: manifest["architecture"].update(num_outputs=4)},
        "the architecture has 4 outputs, the task needs 3",
    ),
    (
        "channels",
        {"change": lambda manifest: manifest["architecture"].update(in_channels=3)},
        "the architecture takes 3 channels, the contract gives 1",
    ),
]


@pytest.mark.parametrize(
    ("parts", "expected"), [pytest.param(*rest, id=name) for name, *rest in REFUSED]
)
def test_a_package_that_is_not_whole_and_unaltered_is_refused(
    tmp_path: Path, parts: dict[str, Any], expected: str
) -> None:
    folder = stored(tmp_path, **parts)
    if expected.startswith("is not a model package"):
        (Path(folder) / "model.json").unlink()
    with pytest.raises(PackageError, match=ONE_SENTENCE) as caught:
        read_package(folder)
    assert str(caught.value).startswith(folder)
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\x80\x04N.", b"\xff\xfe{}"])
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = Path(stored(tmp_path))
    (folder / "model.json").write_bytes(content)
    with pytest.raises(PackageError, match=r"model.json is not valid"):
        read_package(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "golden.json", "golden/01.png"])
def test_one_changed_byte_is_refused(tmp_path: Path, name: str) -> None:
    folder = Path(stored(tmp_path))
    original = (folder / name).read_bytes()
    for place in (0, len(original) // 2, len(original) - 1):
        content = bytearray(original)
        content[place] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(PackageError, match="its SHA-256 differs"):
            read_package(str(folder))


def test_another_package_than_the_registered_one_is_refused(tmp_path: Path) -> None:
    package = small_package()
    folder = stored(tmp_path, change=lambda manifest: manifest["metrics"].update(accuracy=1.0))
    with pytest.raises(PackageError, match=ONE_SENTENCE) as caught:
        read_package(folder, expected_digest=package.digest)
    assert f"but {package.digest[:12]} was registered" in str(caught.value)
    assert read_package(folder).manifest.metrics == {"accuracy": 1.0}


def of_another_network() -> bytes:
    torch.manual_seed(0)
    module = build(Architecture(name="resnet20", in_channels=1, num_outputs=3))
    return safetensors.torch.save(module.state_dict())


def of_another_shape() -> bytes:
    return safetensors.torch.save(lenet_module(4).state_dict())


@pytest.mark.parametrize(
    "weights",
    [
        lambda good: good[:-100],
        lambda good: good[:4],
        lambda good: b"",
        lambda good: b"\xff" * 8 + good[8:],
    ],
)
def test_weights_that_are_none_are_refused_when_they_are_read(
    tmp_path: Path, weights: Callable[[bytes], bytes]
) -> None:
    content = weights(small_package().files["model.safetensors"])
    folder = stored(tmp_path, files={"model.safetensors": content})
    with pytest.raises(PackageError, match=ONE_SENTENCE) as caught:
        read_package(folder)
    assert "model.safetensors is not a safetensors file" in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (of_another_network, "they lack 'features.0.weight'"),
        (of_another_shape, "'classifier.4.weight' has the shape 4 x 84, the network takes 3 x 84"),
    ],
)
def test_weights_of_another_network_are_refused_before_that_is_built(
    tmp_path: Path, weights: Callable[[], bytes], expected: str
) -> None:
    package = read_package(stored(tmp_path, files={"model.safetensors": weights()}))
    with pytest.raises(PackageError, match=ONE_SENTENCE) as caught:
        package.build_module()
    assert str(caught.value) == f"model.safetensors does not fit lenet5: {expected}."


def of_links(folder: Path) -> None:
    (folder / "golden/00.png").unlink()
    (folder / "golden/00.png").symlink_to("/nonexistent")


def of_folders(folder: Path) -> None:
    (folder / "model.json").unlink()
    (folder / "model.json").mkdir()


def of_pipes(folder: Path) -> None:
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [of_links, of_folders, of_pipes])
def test_a_package_of_odd_files_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = stored(tmp_path)
    make(Path(folder))
    with pytest.raises(PackageError, match=ONE_SENTENCE):
        read_package(folder)


def golden_json(file: str, *outputs: float) -> bytes:
    images = [{"file": file, "outputs": outputs}]
    return json.dumps({"tolerance": 0.03, "images": images}).encode()


@pytest.mark.parametrize(
    "golden",
    [
        b"nothing",
        b'{"tolerance": 0, "images": []}',
        b'{"tolerance": 0.03, "images": [], "code": "import os"}',
        *(
            pytest.param(content)
            for content, reason in (
                (golden_json("golden/77.png", 0.2, 0.3, 0.5), "KeyError"),
                (golden_json("golden/00.png", 0.2, 0.8), "ValueError of NumPy"),
                (golden_json("golden/00.png", 0.33), "one number is compared with all outputs"),
                (golden_json("model.safetensors", 0.2, 0.3, 0.5), "BadImageError, a bug's exit"),
            )
        ),
    ],
)
def test_golden_images_that_cannot_be_checked_are_refused(tmp_path: Path, golden: bytes) -> None:
    folder = stored(tmp_path, files={"golden.json": golden})
    with pytest.raises(PackageError, match=ONE_SENTENCE):
        check_golden(read_package(folder), tmp_path)


def test_golden_images_with_other_predictions_are_unhealthy(tmp_path: Path) -> None:
    folder = stored(tmp_path, files={"golden.json": golden_json("golden/00.png", 1.0, 0.0, 0.0)})
    check = check_golden(read_package(folder), tmp_path)
    assert not check.healthy
    assert check.max_difference > 0.3


# --- nothing in a package ever runs -----------------------------------------------------------


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


def plain_pickle(marker: Path) -> bytes:
    return pickle.dumps(Touch(marker))


def torch_pickle(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": Touch(marker)}, buffer)
    return buffer.getvalue()


def numpy_pickle(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray([Touch(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def code(marker: Path) -> bytes:
    return f"open({str(marker)!r}, 'w').close()\n".encode()


PICKLES = [plain_pickle, torch_pickle, numpy_pickle]


@pytest.mark.parametrize("payload", PICKLES)
def test_the_payloads_would_work(tmp_path: Path, payload: Callable[[Path], bytes]) -> None:
    marker = tmp_path / "marker"
    content = payload(marker)
    if payload is plain_pickle:
        pickle.loads(content)
    elif payload is torch_pickle:
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        np.load(io.BytesIO(content), allow_pickle=True)
    assert marker.exists()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model.pkl",
        "model.pt",
        "pytorch_model.bin",
        "golden/00.pkl",
        "golden.json",
        "data.npy",
    ],
)
@pytest.mark.parametrize("payload", PICKLES)
def test_a_pickle_is_refused_and_never_loaded(
    tmp_path: Path, payload: Callable[[Path], bytes], name: str, listed: bool
) -> None:
    marker = tmp_path / "marker"
    content = {name: payload(marker)}
    folder = stored(tmp_path, files=content) if listed else stored(tmp_path, unlisted=content)
    with pytest.raises(PackageError, match=ONE_SENTENCE):
        check_golden(read_package(folder), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("payload", PICKLES)
def test_a_pickle_as_golden_image_is_only_ever_read_as_an_image(
    tmp_path: Path, payload: Callable[[Path], bytes]
) -> None:
    marker = tmp_path / "marker"
    package = read_package(stored(tmp_path, files={"golden/00.png": payload(marker)}))
    package.build_module()
    with pytest.raises(EaglerayError, match=ONE_SENTENCE):
        check_golden(package, tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("payload", PICKLES)
def test_a_pickle_as_manifest_is_refused(tmp_path: Path, payload: Callable[[Path], bytes]) -> None:
    marker = tmp_path / "marker"
    folder = stored(tmp_path)
    (Path(folder) / "model.json").write_bytes(payload(marker))
    with pytest.raises(PackageError, match=r"model.json is not valid"):
        read_package(folder)
    assert not marker.exists()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "model.py",
        "__init__.py",
        "sitecustomize.py",
        "usercustomize.py",
        "conftest.py",
        "torch.py",
        "hubconf.py",
        "evil.pth",
        "golden/__init__.py",
    ],
)
def test_code_beside_a_model_is_refused_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, listed: bool
) -> None:
    marker = tmp_path / "marker"
    content = {name: code(marker)}
    folder = stored(tmp_path, files=content) if listed else stored(tmp_path, unlisted=content)
    monkeypatch.chdir(folder)
    with pytest.raises(PackageError, match=r"is not allowed|does not list"):
        read_package(folder)
    with pytest.raises(PackageError, match=r"is not allowed|does not list"):
        read_package(".")
    assert not marker.exists()


def test_a_name_of_an_architecture_is_looked_up_and_never_imported(tmp_path: Path) -> None:
    folder = stored(
        tmp_path, change=lambda manifest: manifest["architecture"].update(name="os.system")
    )
    with pytest.raises(UserError, match=r"No architecture is named 'os.system'"):
        read_package(folder).build_module()


def test_files_are_verified_as_they_were_read(tmp_path: Path) -> None:
    folder = stored(tmp_path)
    package = read_package(folder)
    shutil.rmtree(folder)  # nothing is read a second time, so nothing can be exchanged in between
    assert package.build_module() is not None
    assert check_golden(package, tmp_path).healthy
    assert package.task == DIGITS


def test_weights_travel_beside_the_rest_and_arrive_without_a_copy() -> None:
    package = small_package()
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(package, protocol=5, buffer_callback=buffers.append)
    weights = package.files[WEIGHTS_FILE]
    assert len(rest) < len(weights)
    assert [buffer.raw().tobytes() for buffer in buffers] == [weights]
    arrived = pickle.loads(rest, buffers=buffers)
    assert arrived.digest == package.digest
    assert np.shares_memory(
        np.frombuffer(arrived.files[WEIGHTS_FILE], np.uint8), np.frombuffer(weights, np.uint8)
    )
    for alike in (arrived, pickle.loads(pickle.dumps(package, protocol=5))):
        for name, tensor in package.build_module().state_dict().items():
            np.testing.assert_array_equal(tensor, alike.build_module().state_dict()[name])
