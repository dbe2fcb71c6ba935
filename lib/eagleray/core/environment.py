"""Prepares a process for the machine and the user that it runs on and as.

What libraries look up in the environment is set here where the system does not say it, and what
they would fail at much later is checked at once.
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
    "ray_temporary_folder",
    "require_writable_folder",
    "set_user_variables",
]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that are this machine, for which no proxy is asked."""

_MAX_SOCKET_PATH = 107  # bytes that the system allows
_RAY_SOCKET = "/ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"


def set_user_variables(home: Path) -> None:
    """Set `HOME` and `USER` where the system does not know who this process runs as.

    Containers run as numbers without an entry in passwd, and libraries ask for a home folder and a
    name when they are imported.

    Args:
        home: Stands in for the user's home folder.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("HOME", str(home))
        if not os.environ.get("LOGNAME"):
            os.environ.setdefault("USER", str(os.getuid()))


def bypass_proxy_for_loopback() -> None:
    """Have no proxy asked for addresses of this machine, whatever proxy is set for others."""
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in os.environ.get(variable, "").split(",") if host.strip()]
        if "*" not in hosts:
            missing = [host for host in LOOPBACK if host not in hosts]
            os.environ[variable] = ",".join([*hosts, *missing])


def is_loopback(host: str) -> bool:
    """Whether a host of a URL is this machine, in any spelling that leads nowhere else."""
    name = host.lower().removesuffix(".").strip("[]")
    if name in LOOPBACK or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or address.is_unspecified or (mapped or address).is_loopback


def require_writable_folder(folder: Path, name: str, setting: str) -> None:
    """Make a folder, if need be, and check that files can be made in it.

    Args:
        folder: Absolute path.
        name: What the folder is, as the subject of a sentence.
        setting: The variable that names it.

    Raises:
        UserError: It cannot be written.
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
    """Return the folder in which a Ray of one's own keeps its sockets, logs and spilled objects.

    Only this user enters it: Ray lets everybody write in the folders that it makes, and whoever
    replaces one of its sockets or a program that it runs is this user. Where the temporary folder
    is one that others enter, as `/tmp`, it is a folder in that.

    Raises:
        UserError: It cannot be written, is another user's, or its path is too long for sockets.
    """
    named = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    given = Path(os.environ[named] if named else "/tmp").absolute()  # noqa: S108
    folder = given / f"ray-{os.getuid()}" if _others_enter(given) else given
    room = _MAX_SOCKET_PATH - len(_RAY_SOCKET) - len(str(folder)) + len(str(given))
    length = len(os.fsencode(given))
    if length > room:
        raise UserError(
            f"{named} is too long for the paths of Ray's sockets ({length} bytes, at most {room} "
            f"fit): {given}; set RAY_TMPDIR to a folder with a shorter path, such as /tmp."
        )
    if not given.exists():
        with contextlib.suppress(OSError):  # the next line says what is wrong
            given.mkdir(mode=0o700, parents=True)
    require_writable_folder(given, "The temporary folder", "RAY_TMPDIR")
    if folder != given:
        _make_private(folder)
    return str(folder)


def _others_enter(folder: Path) -> bool:
    """Whether another user may enter a folder; one that is missing is made for this one alone."""
    try:
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid != os.getuid() or bool(found.st_mode & 0o077)


def _make_private(folder: Path) -> None:
    """Make a folder that only this user enters, in one where others could have made it before.

    Raises:
        UserError: They have, or it cannot be made.
    """
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            folder.chmod(0o700)
            return
        reason = "it is another user's, or no folder"
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(
        f"Ray's folder {folder} cannot be used ({reason}); set RAY_TMPDIR to a folder of your own."
    )
