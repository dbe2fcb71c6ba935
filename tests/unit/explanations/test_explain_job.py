"""A page of explanations, from the command line to its pictures."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.core.settings import Settings
from eagleray.explanations.job import open_explanations, run_explanations
from eagleray.explanations.spec import ExplainSpec
from eagleray.jobs import explain
from eagleray.models.attributes import NumberAttribute
from eagleray.models.building import build
from eagleray.models.package import write_package
from eagleray.registry.references import load_model
from tests.support.models import golden_png, lenet, small_package
from tests.support.reporting import RecordingReporter


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(golden_png(seed, side=40 + seed))
    (folder / "broken.png").write_bytes(golden_png(0)[:200])
    return folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = str(tmp_path / "model")
    write_package(small_package(), folder)
    return folder


def make(spec: ExplainSpec, home: Path) -> tuple[dict[str, object], list[Image.Image], str]:
    """Return the summary, the pictures of the page, and the page."""
    settings = Settings(home=home)
    reporter = RecordingReporter()
    summary = run_explanations(open_explanations(spec, settings, load_model), reporter)
    assert len(reporter.advanced) == len(summary.images) + len(summary.failures)
    page = Path(spec.output).read_text()
    assert "://" not in re.sub(r"data:image/jpeg;base64,[^\"]*", "", page)
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    opened: list[Image.Image] = [Image.open(io.BytesIO(base64.b64decode(one))) for one in pictures]
    return summary.as_json(), opened, page


def test_the_page_has_an_overlay_of_each_image_and_patches(
    model: str, images: Path, tmp_path: Path
) -> None:
    spec = ExplainSpec(model=model, images=str(images), output=str(tmp_path / "page.html"))
    found, pictures, page = make(spec, tmp_path / "home")
    assert found["page"] == spec.output
    explained = found["images"]
    assert isinstance(explained, list)
    assert [Path(one["uri"]).name for one in explained] == [f"{n}.png" for n in range(6)]
    assert all(one["predicted"] == [one["label"]] for one in explained)
    assert [picture.size for picture in pictures[:6]] == [(40 + n, 40 + n) for n in range(6)]
    assert all(picture.size == (96, 96) for picture in pictures[6:])
    channels = found["channels"]
    assert isinstance(channels, dict)
    assert set(channels) == {one["label"] for one in explained}
    assert any(channels.values())
    assert page.count("% of the evidence") == sum(map(len, channels.values()))
    assert len(pictures) > 6
    failed = found["failed"]
    assert isinstance(failed, dict)
    assert {uri: one["reason"] for uri, one in failed.items()} == {
        f"{images}/broken.png": "truncated"
    }
    assert "Images that could not be explained" in page


def test_a_label_is_explained_in_every_image_and_images_are_spread(
    model: str, images: Path, tmp_path: Path
) -> None:
    (images / "broken.png").unlink()
    output = str(tmp_path / "page.html")
    spec = ExplainSpec(model=model, images=str(images), label="two", max_images=3, output=output)
    found, _, page = make(spec, tmp_path / "home")
    explained = found["images"]
    assert isinstance(explained, list)
    assert [Path(one["uri"]).name for one in explained] == ["0.png", "2.png", "5.png"]
    assert {one["label"] for one in explained} == {"two"}
    assert "3 of 6 images are explained; see --max-images." in page


def test_what_cannot_be_explained_is_refused_before_an_image_is_read(
    model: str, images: Path, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home")
    output = str(tmp_path / "page.html")
    spec = ExplainSpec(model=model, images=str(images), label="tow", output=output)
    with pytest.raises(UnknownNameError, match=r"label: No label of the model .*Nearest: two"):
        open_explanations(spec, settings, load_model)
    with pytest.raises(InputError, match=r"output is an HTML page.*must end in \.html"):
        ExplainSpec.make({"model": model, "images": str(images), "output": "page.pdf"})
    age = NumberAttribute(name="age", mean=40.0, std=10.0)
    architecture = lenet().model_copy(update={"num_attributes": 2})
    takes_age = small_package(
        attributes=(age,), architecture=architecture, module=build(architecture), golden_images=()
    )
    write_package(takes_age, str(tmp_path / "takes-age"))
    spec = ExplainSpec(model=str(tmp_path / "takes-age"), images=str(images), output=output)
    with pytest.raises(InputError, match="takes the attributes age beside images"):
        open_explanations(spec, settings, load_model)
    assert not Path(output).exists()


def test_no_image_that_can_be_decoded_is_an_error(model: str, images: Path, tmp_path: Path) -> None:
    spec = ExplainSpec(
        model=model, images=f"{images}/broken.png", output=str(tmp_path / "page.html")
    )
    with pytest.raises(InputError, match="None of the 1 images can be explained; of the first"):
        make(spec, tmp_path / "home")


def test_the_command_prints_what_it_explained(
    model: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EAGLERAY_HOME", str(tmp_path / "home"))
    app = typer.Typer()
    app.command()(explain.main)
    words = [model, str(images), "--output", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["images"]) == 6
    done = CliRunner().invoke(app, words)
    assert "Explained images" in done.stdout
    assert str(tmp_path / "page.html") in done.stdout.replace("\n", "")
