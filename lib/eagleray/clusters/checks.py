"""Checks what every node of a cluster needs: versions, registry, database, storage, token, GPUs.

    with probing(settings, output, shared=True) as (context, findings):    on the driver
        findings += check_node(context, settings, "ray-node-1")            on every node

A finding names the setting, or the command, that mends it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

from eagleray.core.errors import EaglerayError, InputError, UserError
from eagleray.core.extensions import load_extensions
from eagleray.core.settings import Settings
from eagleray.database.store import open_database
from eagleray.io import storage
from eagleray.registry.tracking import connect
from eagleray.sharded.plan import new_id

__all__ = ["CheckContext", "Finding", "check_clock", "check_node", "probing"]

_PACKAGES: Final = ("eagleray", "ray", "torch")
_MIN_FREE_BYTES: Final = 2**30
_MAX_SKEW_SECONDS: Final = 2.0
_DEVICES: Final = Path("/dev")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        node: Name of the node.
        check: Name of the check.
        fault: A sentence that says what is wrong and how to mend it; "" if nothing is.
        detail: What was found.
    """

    node: str
    check: str
    fault: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What the driver has, for the nodes to compare with.

    Attributes:
        versions: Versions of packages and of Python.
        places: Digests of the addresses of registry and database, by setting; they may hold
            passwords.
        probes: Files that the driver has written, by the setting that names their folder.
        content: Content of these files.
        shared: Whether there are other machines, which do not see this one's files.
    """

    versions: Mapping[str, str]
    places: Mapping[str, str]
    probes: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    shared: bool = False


@contextlib.contextmanager
def probing(
    settings: Settings, output: str | None, *, shared: bool
) -> Iterator[tuple[CheckContext, list[Finding]]]:
    """Write a small file to each storage for the block, and remove it afterwards.

    Args:
        settings: The settings of the driver.
        output: A folder or URI for results; None for none.
        shared: Whether there are other machines.

    Yields:
        What the nodes compare with, and what was found on the driver.
    """
    content = new_id().encode()
    folders = {"EAGLERAY_ARTIFACT_ROOT": settings.artifacts, "EAGLERAY_RUNS_ROOT": settings.runs}
    if settings.jobs_root is not None:
        folders["EAGLERAY_JOBS_ROOT"] = settings.jobs_root
    if output is not None:
        folders["--output"] = output
    findings, probes = [], {}
    for setting, folder in folders.items():
        file = storage.join(storage.absolute(folder), f".doctor-{content.decode()}")
        write = functools.partial(_write, file, content, shared=shared)
        finding = _attempt("driver", f"write {setting}", write)
        findings.append(finding)
        if not finding.fault:
            probes[setting] = file
    try:
        yield CheckContext(_versions(), _places(settings), probes, content, shared), findings
    finally:
        for file in probes.values():
            with contextlib.suppress(OSError):
                storage.delete(file)


def check_node(
    context: CheckContext, settings: Settings, node: str, *, num_gpus: float | None = None
) -> list[Finding]:
    """Run every check on this machine.

    Args:
        context: What the driver has.
        settings: The settings of this machine.
        node: Name of this node.
        num_gpus: Number of GPUs that Ray offers here; None without a Ray.
    """
    checks: dict[str, Callable[[], str]] = {
        "versions": lambda: _check_versions(context),
        "home": lambda: _check_home(settings),
        "settings": lambda: _check_places(context, settings),
        "registry": lambda: _check_registry(context, settings),
        "database": lambda: _check_database(context, settings),
        "extensions": lambda: _check_extensions(settings),
        "token": lambda: _check_token(context),
        "gpus": lambda: _check_gpus(num_gpus),
    }
    for setting, file in context.probes.items():
        checks[f"read {setting}"] = functools.partial(_check_probe, file, context.content)
    return [_attempt(node, name, check) for name, check in checks.items()]


def check_clock(node: str, *, before: float, there: float, after: float) -> Finding:
    """Compare a node's clock with the driver's.

    Args:
        node: Name of the node.
        before: The driver's time when it asked, in seconds.
        there: The node's time when it answered.
        after: The driver's time when it had the answer.
    """
    skew = max(before - there, there - after, 0.0)
    if skew <= _MAX_SKEW_SECONDS:
        return Finding(node, "clock", detail="agrees")
    fault = f"The clock differs by at least {skew:.0f} s from the driver's; have NTP set it."
    return Finding(node, "clock", fault)


def _attempt(node: str, name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(node, name, detail=check())
    except EaglerayError as error:
        return Finding(node, name, fault=str(error))


def _write(file: str, content: bytes, *, shared: bool) -> str:
    if shared and not storage.is_remote(file):
        raise UserError(
            f"{Path(file).parent} is on the disk of one machine; name storage that all nodes "
            "reach, such as s3://BUCKET/FOLDER, or a file system that is mounted on all of them."
        )
    try:
        storage.put_if_absent(file, content)
        replaced = storage.put_if_absent(file, b"again")
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror or error}); see the folder and the "
            "credentials of this machine, or name another one."
        ) from None
    if replaced:
        raise UserError(
            f"The storage of {file} replaces files that exist although it is asked not to, so "
            "concurrent runs of a job could mix; use one with conditional writes."
        )
    return "can be written, and only once"


def _check_probe(file: str, content: bytes) -> str:
    try:
        found = storage.read_bytes(file)
    except FileNotFoundError:
        raise UserError(
            f"{file}, which the driver has just written, is not there; the folder is another one "
            "on this node."
        ) from None
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror or error}); see the credentials of this node."
        ) from None
    if found != content:
        raise UserError(f"{file} has another content here than on the driver.")
    return "reads what the driver wrote"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def _check_versions(context: CheckContext) -> str:
    here = _versions()
    wrong = [
        f"{name} {here[name]} and not {wanted}"
        for name, wanted in context.versions.items()
        if here[name] != wanted
    ]
    if wrong:
        raise UserError(f"The node has {', '.join(wrong)}; install the driver's environment there.")
    return ", ".join(f"{name} {found}" for name, found in here.items())


def _check_home(settings: Settings) -> str:
    free = shutil.disk_usage(settings.make_home()).free
    if free < _MIN_FREE_BYTES:
        raise UserError(
            f"The disk of {settings.home_folder} has {free / 1e6:,.0f} MB left; make room, or set "
            "EAGLERAY_HOME to another disk."
        )
    return f"{free / 1e9:,.0f} GB free"


def _places(settings: Settings) -> dict[str, str]:
    places = {
        "EAGLERAY_TRACKING_URI": settings.mlflow_uri,
        "EAGLERAY_DATABASE_URL": settings.database_url or "",
        "EAGLERAY_ARTIFACT_ROOT": settings.artifacts,
        "EAGLERAY_RUNS_ROOT": settings.runs,
        "EAGLERAY_JOBS_ROOT": settings.jobs_root or "",
    }
    return {name: hashlib.sha256(place.encode()).hexdigest() for name, place in places.items()}


def _check_places(context: CheckContext, settings: Settings) -> str:
    here = _places(settings)
    differ = [name for name, digest in context.places.items() if here[name] != digest]
    if differ:
        verb = "differs" if len(differ) == 1 else "differ"
        raise UserError(f"{' and '.join(differ)} {verb} from the driver's; set the same value.")
    return "as on the driver"


def _check_registry(context: CheckContext, settings: Settings) -> str:
    if context.shared and settings.mlflow_uri.startswith("sqlite"):
        raise UserError(
            "The registry is a file of this machine; set EAGLERAY_TRACKING_URI to an MLflow server "
            "that all nodes reach."
        )
    connect(settings)
    return "responds"


def _check_database(context: CheckContext, settings: Settings) -> str:
    if context.shared and not (settings.database_url or "sqlite").startswith("postgresql"):
        raise UserError(
            "The organisation's database is a file of this machine; set EAGLERAY_DATABASE_URL to a "
            "PostgreSQL database that all nodes reach."
        )
    open_database(settings)
    return "responds"


def _check_extensions(settings: Settings) -> str:
    load_extensions()
    return ", ".join(settings.extension_modules) or "none"


def _check_token(context: CheckContext) -> str:
    if context.shared and os.environ.get("RAY_AUTH_MODE") != "token":
        raise InputError(
            "Ray accepts everybody who reaches it; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on "
            "every node before `ray start`."
        )
    return "is required" if context.shared else "not needed"


def _check_gpus(num_gpus: float | None) -> str:
    found = len(list(_DEVICES.glob("nvidia[0-9]*")))
    if num_gpus is None:
        return f"{found}"
    if num_gpus and version("torch").endswith("+cpu"):
        raise UserError(
            f"Ray offers {num_gpus:g} GPUs and PyTorch is built without CUDA; install the build "
            "with it."
        )
    if found < num_gpus:
        raise UserError(
            f"Ray offers {num_gpus:g} GPUs and this machine has {found}; start Ray with the right "
            "--num-gpus, and install NVIDIA's driver."
        )
    if found > num_gpus:
        raise UserError(
            f"This machine has {found} GPUs and Ray offers {num_gpus:g}; start Ray with --num-gpus "
            f"{found}."
        )
    return f"{found}"
