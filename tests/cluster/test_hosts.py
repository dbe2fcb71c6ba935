"""A head and three workers as four hosts, and a client outside of them with only the wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosted import BUCKET, MODEL, Hosted

pytestmark = pytest.mark.long

HERE = ["--device", "cpu", "--seed", "1", "--epochs", "2", "--batch-size", "8"]
TRAIN = ["--name", "stripes", "--architecture", "lenet5", *HERE]


def test_each_host_is_its_own(hosted: Hosted) -> None:
    head, worker = hosted.cluster.head, hosted.cluster.workers[0]
    (head.folder / "tmp/mark").touch()
    assert "mark" in head.run("ls", "/tmp").stdout
    assert "mark" not in worker.run("ls", "/tmp").stdout
    assert worker.run("hostname").stdout == "worker-1\n"
    assert "gcs_server" in head.run("ps", "-A").stdout
    assert "gcs_server" not in worker.run("ps", "-A").stdout
    assert hosted.cluster.num_nodes() == 4


def test_the_client_has_the_wheel_and_neither_token_nor_settings_of_the_cluster(
    hosted: Hosted,
) -> None:
    code = "import eagleray, os; print(eagleray.__file__); print(sorted(os.environ))"
    said = hosted.cluster.client.run("python", "-P", "-c", code).stdout
    assert f"{hosted.hosts.folder}/environment/lib" in said
    assert "RAY_AUTH" not in said
    assert "EAGLERAY_DATABASE_URL" not in said


def test_predictions_are_those_of_an_embedded_run_byte_for_byte(hosted: Hosted) -> None:
    photos = hosted.put_photos(60)
    words = ["predict", photos, *MODEL, "--json"]
    there = _json(hosted, *words, "--output", f"{BUCKET}/there", "--cluster", "hosts")
    here = _json(hosted, *words, "--output", f"{BUCKET}/here")
    assert (there["ok"], there["failed"], there["reasons"]) == (60, 1, {"not_an_image": 1})
    assert there["labels"] == here["labels"]
    assert hosted.rows(f"{BUCKET}/there").equals(hosted.rows(f"{BUCKET}/here"))


def test_training_and_evaluation_are_those_of_an_embedded_run(
    hosted: Hosted, tmp_path: Path
) -> None:
    data = hosted.put_stripes(tmp_path)
    trained, evaluated = {}, {}
    for where in ("there", "here"):
        cluster = ["--cluster", "hosts"] if where == "there" else []
        trained[where] = _json(hosted, "train", data, *TRAIN, "--json", *cluster)
        model = trained[where]["model"]
        evaluated[where] = _json(hosted, "evaluate", model, data, "--json", *cluster)
    (there,) = hosted.s3.glob("data/models/**/model.safetensors")
    (here,) = hosted.cluster.client.home.glob(".eagleray/artifacts/**/model.safetensors")
    assert hosted.s3.cat_file(there) == here.read_bytes()
    assert trained["there"]["test"] == trained["here"]["test"]
    assert evaluated["there"]["metrics"] == evaluated["here"]["metrics"]


def _json(hosted: Hosted, *words: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(hosted.eagleray(*words).stdout)
    return value
