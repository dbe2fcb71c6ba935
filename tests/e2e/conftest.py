"""The wheel, built and installed once."""

from __future__ import annotations

import pytest

from tests.support.installed import Distributions, Installed, build_distributions, install


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build_distributions(tmp_path_factory.mktemp("distributions"))


@pytest.fixture(scope="session")
def installed(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(distributions.wheel, tmp_path_factory.mktemp("installed"))
