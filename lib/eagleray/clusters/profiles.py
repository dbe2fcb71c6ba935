"""Clusters by name: an address, and where the token is, kept in the home folder.

    eagleray cluster add gpus ray-jobs+https://ray.example.com --token-file ~/.ray/gpus

A profile never holds the token itself. Without a file, the token is RAY_AUTH_TOKEN.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eagleray.core.cluster_address import job_server_url, require_cluster_address
from eagleray.core.errors import InputError, UnknownNameError, UserError
from eagleray.core.settings import Settings

__all__ = ["ClusterProfile", "ClusterProfiles", "resolve_cluster"]

_MAX_TOKEN_BYTES = 4096


class ClusterProfile(BaseModel):
    """How a cluster is reached.

    Attributes:
        address: One of the forms in `core.cluster_address`.
        token_file: File of the cluster's token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    token_file: Path | None = None

    @property
    def url(self) -> str | None:
        """URL of the job server; None for a cluster that this machine is a node of."""
        return job_server_url(self.address)

    def token(self) -> str:
        """Return the token.

        Raises:
            UserError: If there is none, the file cannot be read, or others may read it.
        """
        if self.token_file is None:
            if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
                return token
            raise UserError(
                f"There is no token for {self.address}; set RAY_AUTH_TOKEN, or name its file: "
                "eagleray cluster add NAME ADDRESS --token-file FILE."
            )
        try:
            if self.token_file.stat().st_mode & 0o077:
                raise UserError(
                    f"Others can read the token in {self.token_file}; run: chmod 600 "
                    f"{self.token_file}."
                )
            with self.token_file.open(encoding="utf-8") as file:
                token = file.read(_MAX_TOKEN_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The token of the cluster cannot be read from {self.token_file} ({error}); name "
                "its file again with `eagleray cluster add`."
            ) from None
        if not token or not token.isprintable() or not token.isascii():
            raise UserError(f"{self.token_file} does not hold one token, a line of printable text.")
        return token


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
