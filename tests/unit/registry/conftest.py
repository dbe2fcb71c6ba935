"""A registry for each module of tests, and a model's name for each test."""

from __future__ import annotations

import secrets

import pytest

from eagleray.registry.registry import Registry
from tests.support.models import registry_in


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One database for the module; tests keep apart by the names of their models."""
    return registry_in(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model's name that is this test's own."""
    return f"{request.node.originalname}-{secrets.token_hex(4)}"
