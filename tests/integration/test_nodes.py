"""A node that lacks what a prediction asks for: refused before the job, and by its worker."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from eagleray.batch.nodes import require_nodes_able
from eagleray.batch.run import run_job
from eagleray.batch.spec import PredictSpec
from eagleray.core.errors import UnsupportedError
from eagleray.core.ray_session import ray_session
from eagleray.core.settings import Settings
from eagleray.models.package import write_package
from tests.support.images import encode, photo
from tests.support.job_folder import open_predict
from tests.support.models import small_package
from tests.support.processes import Child, end_orphans, family
from tests.support.reporting import RecordingReporter

ROOT = Path(__file__).parents[2]
_OLDER_CPU = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Has a node's CPU count as one without bfloat16."""


def refusals(folder: Path) -> list[str]:
    """Ask a cluster with an older CPU for OpenVINO's bfloat16; return what is said about it."""
    from ray.cluster_utils import Cluster

    (folder / "images").mkdir()
    (folder / "images/a.jpg").write_bytes(encode(photo(40, 40), "jpeg"))
    package = small_package()
    write_package(package, str(folder / "model"))
    # The nodes' workers import the code that is tested.
    os.environ["PYTHONPATH"] = str(ROOT / "lib")
    os.environ |= _OLDER_CPU
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for name in _OLDER_CPU:
        del os.environ[name]
    request = PredictSpec(
        inputs=(str(folder / "images"),),
        model=str(folder / "model"),
        output=str(folder / "out"),
        engine="openvino",
        precision="bfloat16",
    )
    settings, said = Settings(home=folder / "home"), []
    with ray_session(settings, address=cluster.address) as session:
        require_nodes_able("openvino", "float32", package.manifest, uses_gpu=False)
        require_nodes_able("eager", "bfloat16", package.manifest, uses_gpu=False)
        try:
            require_nodes_able("openvino", "bfloat16", package.manifest, uses_gpu=False)
        except UnsupportedError as error:
            said.append(str(error))
        job = open_predict(request, settings, RecordingReporter())
        try:
            run_job(job, lambda: session, RecordingReporter())
        except UnsupportedError as error:
            said.append(str(error))
    return said


@pytest.mark.long
def test_bfloat16_that_a_node_lacks_is_one_sentence_that_names_the_node(tmp_path: Path) -> None:
    child = Child(functools.partial(refusals, tmp_path))
    try:
        ended = child.wait(240)
    finally:
        end_orphans(family(child.pid))
    assert not ended.error, ended.error
    assert len(ended.value) == 2, ended.value
    for sentence in ended.value:
        assert sentence.startswith("On node ")
        assert "CPU has no bfloat16, and the engine openvino does not emulate it" in sentence
        assert "\n" not in sentence
