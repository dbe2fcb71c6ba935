"""What tests with real parts share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.mlflow_database import prepare_home


@pytest.fixture(autouse=True)
def _a_registry_is_there(_home_of_its_own: None) -> None:
    prepare_home(Path(os.environ["EAGLERAY_HOME"]))
