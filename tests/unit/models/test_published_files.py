"""Files of published weights: what lies under their name is checked before it is read."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch
import torchvision

from eagleray.core.errors import InputError
from eagleray.models.published_files import digest_in, require_published_file
from eagleray.registry.references import load_model


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))  # as set_dir does, and undone
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (self.folder,)  # type: ignore[return-value]


def test_names_end_in_a_digest() -> None:
    assert digest_in("resnet18-f37072fd.pth") == "f37072fd"
    assert digest_in("resnet18.pth") == ""
    for name in ("resnet18", "ssd300_vgg16", "fasterrcnn_resnet50_fpn_v2"):
        entry = torchvision.models.get_model_weights(name).DEFAULT
        assert len(digest_in(entry.url.rpartition("/")[2])) == 8


@pytest.mark.parametrize("name", ["resnet18", "ssdlite320_mobilenet_v3_large"])
def test_another_file_is_refused_and_its_code_does_not_run(name: str, checkpoints: Path) -> None:
    entry = torchvision.models.get_model_weights(name).DEFAULT
    file = checkpoints / entry.url.rpartition("/")[2]
    made = checkpoints / "made"
    file.write_bytes(pickle.dumps(RunsCode(made)))
    found = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    fault = f"{file.name} does not hold the published weights: its SHA-256 begins with {found}"
    with pytest.raises(InputError, match=fault):
        load_model(f"pretrained:{name}")
    assert not made.exists()


def test_the_published_file_and_no_file_are_accepted(checkpoints: Path) -> None:
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    require_published_file(f"https://example.org/{name}")
    (checkpoints / name).write_bytes(content)
    require_published_file(f"https://example.org/{name}")


def test_a_composed_network_has_no_published_weights_of_its_own() -> None:
    with pytest.raises(InputError, match="--architecture detector/resnet18 --pretrained"):
        load_model("pretrained:detector/resnet18")
