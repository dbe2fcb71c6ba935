"""The jobs of a service, with the key of an application: the token never leaves the cluster.

A command travels as its specification. Small text files that it names, such as KPIs and a search
space, travel in it; images and tables have to be in storage that the service reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Final

from eagleray.client import Client, RequestRefusedError
from eagleray.client.jobs import Job
from eagleray.clusters.profiles import ClusterProfile
from eagleray.clusters.remote_jobs import LogText, RemoteCommand, RemoteJob
from eagleray.clusters.uploads import copy_command, is_local, require_remote_outputs
from eagleray.core.display import escape_text
from eagleray.core.errors import EaglerayError, InputError, OutageError, UnknownNameError, UserError
from eagleray.core.spec import Names, Spec
from eagleray.io.yaml_fields import read_fields

__all__ = ["ServiceJobs"]

_SECONDS: Final = 8.0  # for a request with its retries
_PATIENCE_SECONDS: Final = 60.0  # a job that is followed outlives a restart of the service
_POLL_SECONDS: Final = 1.0
_MAX_TEXT_BYTES: Final = 64 * 1024
_COMMANDS: Final = ("predict", "train", "tune", "evaluate", "inspect", "pack")
_NO_OPTIONS: Final = frozenset({"spec", "cluster", "verbose", "json_output"})
"""Parameters of commands that are no options of a job: they are used here, or are another's."""


class ServiceJobs:
    """The jobs of a service; implements `RemoteJobs`.

    Args:
        profile: The service.
    """

    def __init__(self, profile: ClusterProfile) -> None:
        assert profile.url is not None
        self._address = profile.address
        self._client = Client(profile.url, key=profile.secret(), timeout=_SECONDS)

    def facts(self) -> dict[str, Any]:
        """Return the version of Eagleray that the service runs."""
        with self._told():
            theirs = self._client.version()
        ours = version("eagleray")
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise UserError(
                f"The service at {self._address} runs Eagleray {escape_text(theirs)} and this "
                f"machine has {ours}; install the service's version."
            )
        return {"eagleray": theirs}
