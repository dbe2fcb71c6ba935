"""Clusters by name: an address, and where the key or the token is, kept in the home folder.

    eagleray cluster add images https://images.example.com --key-file ~/.eagleray-key
    eagleray cluster add gpus ray-jobs+https://ray.example.com --token-file ~/.ray/gpus

A profile never holds the secret itself. Without a file, the key of a service is EAGLERAY_API_KEY,
and the token of a head is RAY_AUTH_TOKEN.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eagleray.core.cluster_address import job_server_url, require_cluster_address, service_url
from eagleray.core.errors import InputError, UnknownNameError, UserError
from eagleray.core.settings import Settings

__all__ = ["ClusterProfile", "ClusterProfiles", "resolve_cluster"]

_MAX_SECRET_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class _Secret:
    """A kind of secret: its name, the variable that holds it, and the option of its file."""

    name: str
    variable: str
    option: str


_KEY: Final = _Secret("key", "EAGLERAY_API_KEY", "--key-file")
_TOKEN: Final = _Secret("token", "RAY_AUTH_TOKEN", "--token-file")


class ClusterProfile(BaseModel):
    """How a cluster is reached.

    Attributes:
        address: One of the forms in `core.cluster_address`.
        key_file: File of an application's key, for the address of a service.
        token_file: File of the cluster's token, for the address of a head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    key_file: Path | None = None
    token_file: Path | None = None

    @model_validator(mode="after")
    def _file_fits_address(self) -> Self:
        if self.key_file is not None and not self.is_service:
            raise ValueError(
                f"--key-file is for the key of a service, and {self.address} is none; its address "
                "is https://SERVICE"
            )
        if self.token_file is not None and self.is_service:
            raise ValueError(
                f"{self.address} is a service, which takes the key of an application: give "
                "--key-file, and keep the cluster's token inside the cluster"
            )
        return self

    @property
    def is_service(self) -> bool:
        """Whether a service is there, rather than the head of a cluster."""
        return service_url(self.address) is not None

    @property
    def url(self) -> str | None:
        """URL of the service or job server; None for a cluster that this machine is a node of."""
        return service_url(self.address) or job_server_url(self.address)

    def secret(self) -> str:
        """Return the key of the service, or the token of the cluster.

        Raises:
            UserError: If there is none, the file cannot be read, or others may read it.
        """
        kind = _KEY if self.is_service else _TOKEN
        file = self.key_file or self.token_file
        if file is not None:
            return _read_secret(file, kind)
        if secret := os.environ.get(kind.variable, "").strip():
            return secret
        raise UserError(
            f"There is no {kind.name} for {self.address}; set {kind.variable}, or name its file: "
            f"eagleray cluster add NAME ADDRESS {kind.option} FILE."
        )


def _read_secret(file: Path, kind: _Secret) -> str:
    try:
        if file.stat().st_mode & 0o077:
            raise UserError(f"Others can read the {kind.name} in {file}; run: chmod 600 {file}.")
        with file.open(encoding="utf-8") as opened:
            secret = opened.read(_MAX_SECRET_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The {kind.name} of the cluster cannot be read from {file} ({error}); name its file "
            "again with `eagleray cluster add`."
        ) from None
    if not secret or not secret.isprintable() or not secret.isascii() or " " in secret:
        raise UserError(f"{file} does not hold one {kind.name}, a line of printable text.")
    return secret


class ClusterProfiles(BaseModel):
    """All profiles of a home folder.

    Attributes:
        profiles: Profiles by name.
        used: Name of the one that commands use if they name no cluster.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profiles: dict[str, ClusterProfile] = Field(default_factory=dict)
    used: str | None = None

    @classmethod
    def read(cls, settings: Settings) -> ClusterProfiles:
        """Read the profiles; there are none before one is added.

        Raises:
            UserError: If the file cannot be read.
        """
        file = _file(settings)
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            raise UserError(
                f"The clusters in {file} cannot be read ({str(error).splitlines()[0]}); mend the "
                "file, or remove it and add the clusters again."
            ) from None

    def write(self, settings: Settings) -> None:
        """Replace the profiles of a home folder.

        Raises:
            UserError: If the home folder cannot be written.
        """
        from eagleray.io import storage  # commands that only read the profiles start at once

        settings.make_home()
        text = self.model_dump_json(indent=2) + "\n"
        storage.put_atomic(str(_file(settings)), text.encode())

    def get(self, name: str) -> ClusterProfile:
        """Return a profile.

        Raises:
            UnknownNameError: If none has the name; the message has the nearest ones.
        """
        if name not in self.profiles:
            raise UnknownNameError("cluster", name, self.profiles, hint=_ADD)
        return self.profiles[name]

    def with_profile(self, name: str, profile: ClusterProfile) -> ClusterProfiles:
        """Return the profiles with one more, or with another one of that name.

        Raises:
            InputError: If the name could be an address, or the address is none.
        """
        if not name.replace("-", "").replace("_", "").isalnum() or name == "auto":
            raise InputError(f"{name!r} cannot be the name of a cluster; use letters and digits.")
        require_cluster_address(profile.address)
        return self.model_copy(update={"profiles": {**self.profiles, name: profile}})

    def without(self, name: str) -> ClusterProfiles:
        """Return the profiles without one.

        Raises:
            UnknownNameError: If none has the name.
        """
        self.get(name)
        rest = {known: profile for known, profile in self.profiles.items() if known != name}
        used = None if self.used == name else self.used
        return self.model_copy(update={"profiles": rest, "used": used})


_ADD = "`eagleray cluster list` shows them, and `eagleray cluster add` adds one."


def resolve_cluster(named: str | None, settings: Settings) -> ClusterProfile | None:
    """Return the cluster of a command.

    Args:
        named: What `--cluster` says: a name or an address; None if it is not given.
        settings: The settings, whose address applies then; after it the profile in use.

    Returns:
        The profile, or None for a Ray of the command's own.

    Raises:
        UserError: If the name or the address is unknown.
    """
    if named is None and settings.ray_address is None:
        profiles = ClusterProfiles.read(settings)
        return None if profiles.used is None else profiles.get(profiles.used)
    text = named or settings.ray_address or ""
    if text == "auto" or ":" in text:
        require_cluster_address(text)
        return ClusterProfile(address=text)
    return ClusterProfiles.read(settings).get(text)


def _file(settings: Settings) -> Path:
    return settings.home_folder / "clusters.json"
