"""The features of a classifier: what its last layer gets, in a package of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torchvision.models.feature_extraction import create_feature_extractor

from eagleray.core.errors import InputError, PackageError
from eagleray.inference.predictor import Predictor
from eagleray.inference.verification import verify_package
from eagleray.models.architectures import Architecture, default_contract
from eagleray.models.building import build
from eagleray.models.graph_export import export_graph
from eagleray.models.manifest import Quantization
from eagleray.models.networks.features import features_of
from eagleray.models.package import ModelPackage, create_package, read_package, write_package
from eagleray.models.quantized import create_quantized_package
from eagleray.tasks import Embedding, Multiclass
from eagleray.tasks.embedding import VectorPrediction
from tests.support.attributes import package_with_attributes
from tests.support.models import LINEAGE, golden_png, lenet, small_package

pytestmark = pytest.mark.numerical


def package_of(name: str, side: int = 64) -> ModelPackage:
    labels = ("cat", "dog", "owl")
    torch.manual_seed(0)
    architecture = Architecture(name=name, num_outputs=len(labels))
    return create_package(
        name="animals",
        task=Multiclass(labels=labels),
        architecture=architecture,
        contract=default_contract(name, size=side),
        module=build(architecture).eval(),
        lineage=LINEAGE,
    )


def quantized(package: ModelPackage) -> ModelPackage:
    """Return a package with a graph."""
    return create_quantized_package(
        package,
        export_graph(package),
        quantization=Quantization(method="static", calibration_digest="0" * 64, num_images=1),
        lineage=LINEAGE,
        tolerance=0.05,
    )


@pytest.mark.parametrize(
    ("name", "layer", "dimension"),
    [("resnet18", "flatten", 512), ("mobilenet_v3_small", "classifier.2", 1024)],
)
def test_the_features_are_what_the_last_layer_gets(name: str, layer: str, dimension: int) -> None:
    package = package_of(name)
    features = features_of(package)
    assert features.task == Embedding(dimension=dimension)
    assert features.contract == package.contract
    extractor = create_feature_extractor(package.build_module(), [layer])
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = functional.normalize(extractor(images)[layer], dim=1)
        found = features.task.activate(features.build_module()(images))
    torch.testing.assert_close(found, expected)


def test_the_features_of_a_model_are_the_same_package_every_time(tmp_path: Path) -> None:
    package = small_package()
    first = features_of(package)
    torch.manual_seed(5)
    assert features_of(small_package()).digest == first.digest
    assert first.manifest.lineage.parent == package.digest
    assert first.manifest.name == "digits-features"
    assert first.manifest.architecture.title == "lenet5 (without head)"
    write_package(first, str(tmp_path / "features"))
    again = read_package(str(tmp_path / "features"))
    assert again.digest == first.digest
    assert features_of(again) is again
    assert verify_package(str(tmp_path / "features")).passed


def test_the_predictor_gives_vectors_of_length_one() -> None:
    predictor = Predictor(features_of(small_package()), engine="eager", precision="float32")
    outcomes = predictor.predict([golden_png(1), b"no image", golden_png(1)])
    assert [outcome.ok for outcome in outcomes] == [True, False, True]
    first, other = outcomes[0].prediction, outcomes[2].prediction
    assert isinstance(first, VectorPrediction)
    assert isinstance(other, VectorPrediction)
    assert first.embedding.shape == (84,)
    assert float(first.embedding @ other.embedding) == pytest.approx(1, abs=1e-5)
    assert predictor.task.same_answer(first, other)


def test_attributes_are_no_part_of_the_features() -> None:
    features = features_of(package_with_attributes())
    assert features.attributes == ()
    outcome = Predictor(features, engine="eager").predict([golden_png(1)])[0]
    assert outcome.prediction is not None


def test_a_pruned_network_has_features_too() -> None:
    channels = {"features.3": (6, 10), "classifier.0": (250, 100), "classifier.2": (100, 60)}
    channels["classifier.4"] = (60, 3)
    architecture = lenet().model_copy(update={"channels": channels})
    torch.manual_seed(0)
    features = features_of(
        small_package(architecture=architecture, module=build(architecture).eval())
    )
    assert features.task == Embedding(dimension=60)
    assert features.build_module()(torch.zeros(1, 1, 32, 32)).shape == (1, 60)
    assert features.manifest.architecture.title == "lenet5 (pruned, without head)"


def test_a_graph_is_refused() -> None:
    with pytest.raises(InputError, match="digits is a graph, of which no layer can be left out"):
        features_of(quantized(small_package()))


def test_a_network_that_ends_in_a_convolution_pools_its_features() -> None:
    assert features_of(package_of("squeezenet1_1")).task == Embedding(dimension=512)


def test_a_package_that_leaves_out_a_layer_it_lacks_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    write_package(features_of(small_package()), str(folder))
    manifest = json.loads((folder / "model.json").read_text())
    manifest["architecture"]["removed_head"] = "classifier.99"
    (folder / "model.json").write_text(json.dumps(manifest))
    package = read_package(str(folder))
    with pytest.raises(PackageError, match=r"has no layer 'classifier\.99' to leave out"):
        package.build_module()
    assert not verify_package(str(folder)).passed
