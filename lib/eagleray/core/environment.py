"""Prepares the environment of a process: user, proxies, and writable and temporary folders.

Variables that libraries need are set here if the system does not provide them, and problems that
would make them fail much later are detected early.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import stat
from pathlib import Path

from eagleray.core.errors import UserError

__all__ = [
    "LOOPBACK",
    "bypass_proxy_for_loopback",
    "is_loopback",
    "is_loopback_address",
    "ray_temporary_folder",
    "require_writable_folder",
    "set_user_variables",
]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts of this machine, for which no proxy is used."""

_MAX_SOCKET_PATH = 107  # bytes, a limit of the system
_RAY_SOCKET = "/ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"


def set_user_variables(home: Path) -> None:
    """Set `HOME` and `USER` if the user of this process has no passwd entry.

    Containers often run as such users, and libraries look up the home folder and the user name when
    they are imported.

    Args:
        home: Replacement for the user's home folder.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("HOME", str(home))
        if not os.environ.get("LOGNAME"):
            os.environ.setdefault("USER", str(os.getuid()))


def bypass_proxy_for_loopback() -> None:
    """Exclude addresses of this machine from the proxies in the environment."""
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in os.environ.get(variable, "").split(",") if host.strip()]
        if "*" not in hosts:
            missing = [host for host in LOOPBACK if host not in hosts]
            os.environ[variable] = ",".join([*hosts, *missing])


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine, in any unambiguous spelling."""
    name = host.lower().removesuffix(".").strip("[]")
    if name in LOOPBACK or name.endswith(".localhost"):
        return True
    try:
        return is_loopback_address(name) or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


def is_loopback_address(text: str) -> bool:
    """Whether a text is an IP address of the loopback network, also as a mapped IPv6 address.

    Unlike `is_loopback` it takes no names, which a resolver may send elsewhere: it decides whom a
    service trusts, and where a secret may go in plain text.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def require_writable_folder(folder: Path, name: str, setting: str) -> None:
    """Create a folder if it does not exist, and check that it is writable.

    Args:
        folder: Absolute path of the folder.
        name: Description of the folder, as the subject of a sentence.
        setting: Environment variable that sets the folder.

    Raises:
        UserError: If it is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no permission to write there")
    except OSError as error:
        raise UserError(
            f"{name} {folder} cannot be written ({error.strerror or error}); set {setting} to a "
            "folder that can be."
        ) from None


def ray_temporary_folder() -> str:
    """Return the folder for sockets, logs and spilled objects of a local Ray.

    Only this user can enter it: Ray creates world-writable folders, and a user who replaces one of
    its sockets or programs could act as this user. If others can enter the temporary folder, as
    with `/tmp`, a private folder in it is used.

    Raises:
        UserError: If it is not writable, belongs to another user, or its path is too long for
            sockets.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    base = Path(os.environ[variable] if variable else "/tmp").absolute()  # noqa: S108
    folder = base / f"ray-{os.getuid()}" if _others_can_enter(base) else base
    max_length = _MAX_SOCKET_PATH - len(_RAY_SOCKET) - len(str(folder)) + len(str(base))
    length = len(os.fsencode(base))
    if length > max_length:
        raise UserError(
            f"{variable} is too long for the paths of Ray's sockets ({length} bytes, at most "
            f"{max_length} fit): {base}; set RAY_TMPDIR to a shorter path, such as /tmp."
        )
    if not base.exists():
        with contextlib.suppress(OSError):  # the next line reports the problem
            base.mkdir(mode=0o700, parents=True)
    require_writable_folder(base, "The temporary folder", "RAY_TMPDIR")
    if folder != base:
        _make_private(folder)
    return str(folder)


def _others_can_enter(folder: Path) -> bool:
    """Whether another user can enter a folder; a missing one will be created private."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid != os.getuid() or bool(found.st_mode & 0o077)


def _make_private(folder: Path) -> None:
    """Create a folder that only this user can enter, in one that others can write to.

    Raises:
        UserError: If another user created it, or it cannot be created.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            folder.chmod(0o700)
            return
        reason = "it belongs to another user, or is not a folder"
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(
        f"Ray's folder {folder} cannot be used ({reason}); set RAY_TMPDIR to a folder of your own."
    )
