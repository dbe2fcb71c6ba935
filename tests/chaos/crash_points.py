"""The moments around every call of the storage, and a process that ends itself at one of them."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from eagleray.io import storage
from tests.chaos.places import Place

Moment = Literal["before", "during", "after", "half", "beside", "linked", "midway"]
"""before, after: the call. during: a part of its usual time after it began.
half: a put on disk has written half of its bytes, wherever to.
beside: a put on disk has written its bytes under a temporary name.
linked: it has given them their name, and the temporary one is still there.
midway: a folder on disk has lost its first file."""

CALLS = tuple(
    name
    for name in storage.__all__
    if inspect.isfunction(getattr(storage, name))
    and name not in {"absolute", "is_remote", "join", "name_of", "use_s3", "using_s3"}
)
"""Every function of the storage that touches it."""

_STREAMS = ("glob_tables", "list_files", "list_tables")
_MAX_POINTS_OF_A_KIND = {"input": 2, "model": 1}

_KINDS = (
    (r"_manifest\.json", "commit"),
    (r"_SUCCESS", "success"),
    (r"part-\d+\.\w+", "file"),
    (r"_eagleray/plan\.json", "plan"),
    (r"_eagleray/shards/.*", "shard"),
    (r"_eagleray/shards", "shards"),
    (r"_eagleray/manifest-[^/]*/.*", "inputs' list"),
    (r"_eagleray/manifest-[^/]*", "folder of an inputs' list"),
    (r"_eagleray/(\w+)\.\w+", "other"),
    (r"_eagleray/probe-.*", "probe"),
    (r"_eagleray/cancel", "cancel"),
    (r"_eagleray", "private folder"),
    (r"", "output"),
)


@dataclass(frozen=True)
class Call:
    """One call of a storage function, the same in every run of the same job.

    Attributes:
        name: Name of the function.
        target: Kind of the location.
        nth: Number among the calls with this name and target, from 1.
        seconds: Recorded duration.
    """

    name: str
    target: str
    nth: int
    seconds: float = 0.0

    def is_same(self, other: Call) -> bool:
        return (self.name, self.target, self.nth) == (other.name, other.target, other.nth)


@dataclass(frozen=True)
class Point:
    """A moment of a call."""

    call: Call
    moment: Moment

    def __str__(self) -> str:
        return f"{self.moment} {self.call.name} of {self.call.target} no. {self.call.nth}"


def record_calls(output: str, work: Callable[[], Any]) -> tuple[Any, list[Call]]:
    """Do some work, and return its result and every call that it made."""
    calls: list[Call] = []

    @contextlib.contextmanager
    def note(call: Call) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            calls.append(Call(call.name, call.target, call.nth, seconds))

    _wrap_calls(output, note)
    return work(), calls


def points_of(place: Place, calls: list[Call], *, during: bool = True) -> list[Point]:
    """Return every moment of the calls, less those of inputs that are read the same way.

    Args:
        place: Storage of the output.
        calls: Calls of an undisturbed run.
        during: Whether to include moments that depend on the clock.
    """
    points = []
    for call in calls:
        if call.nth > _MAX_POINTS_OF_A_KIND.get(call.target, 1000):
            continue
        moments: list[Moment] = ["before", "after"]
        if during:
            moments += ["during"]
        if place.on_disk and call.name.startswith("put_"):
            moments += ["half", "beside", "linked"]
        if place.on_disk and call.name == "remove_tree":
            moments += ["midway"]
        points += [Point(call, moment) for moment in moments]
    return points


def die_at(point: Point, fraction: float, output: str, work: Callable[[], Any]) -> Any:
    """Do some work, and kill this process at a moment of it, if it is reached.

    Args:
        point: The moment.
        fraction: Fraction of the call's usual time, for a point `during` it.
        output: Output of the job.
        work: Work to do.
    """

    @contextlib.contextmanager
    def die_there(call: Call) -> Iterator[None]:
        if not call.is_same(point.call):
            yield
            return
        if point.moment == "before":
            die()
        if point.moment == "during":
            threading.Timer(fraction * point.call.seconds, die).start()
        _arm(point.moment)
        try:
            yield
        finally:
            if point.moment == "after":
                die()

    _wrap_calls(output, die_there)
    return work()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not end the process")


def _wrap_calls(
    output: str, around: Callable[[Call], contextlib.AbstractContextManager[None]]
) -> None:
    """Wrap every function of the storage. Changes this process: call it in a child."""
    counts: Counter[tuple[str, str]] = Counter()
    lock = threading.Lock()

    def next_call(name: str, location: str) -> Call:
        target = kind_of(location, output)
        with lock:
            counts[name, target] += 1
            return Call(name, target, counts[name, target])

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(location: str, *args: Any, **options: Any) -> Any:
            with around(next_call(name, location)):
                return function(location, *args, **options)

        def stream(location: str, *args: Any, **options: Any) -> Iterator[Any]:
            with around(next_call(name, location)):
                yield from function(location, *args, **options)

        return stream if name in _STREAMS else call

    for name in CALLS:
        setattr(storage, name, wrap(name, getattr(storage, name)))


def kind_of(location: str, output: str) -> str:
    """Return the kind of a location in the layout of a job."""
    if not (location == output or location.startswith(f"{output}/")):
        if "/model" in location:
            return "model"
        return "record" if "/jobs/" in location else "input"
    below = location.removeprefix(output).lstrip("/")
    for pattern, kind in _KINDS:
        found = re.fullmatch(pattern, below)
        if found:
            return found[1] if kind == "other" else kind
    return "else"


def _arm(moment: Moment) -> None:
    """Kill this process inside of the next put, or the next removal of a folder."""
    if moment == "half":
        _die_while_writing()
    elif moment == "beside":
        _die_around("link", "replace", before=True)
    elif moment == "linked":
        _die_around("link", "replace", before=False)
    elif moment == "midway":
        _die_around("unlink", before=False)


class _HalfFile:
    """Takes half of the first bytes that are written to it, and ends the process."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _HalfFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> NoReturn:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        die()


def _die_while_writing() -> None:
    thread = threading.get_ident()
    open_path = Path.open

    def open_for_half(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = open_path(path, mode, *args, **options)
        if threading.get_ident() != thread or "w" not in mode:
            return file
        return _HalfFile(file)

    setattr(Path, "open", open_for_half)  # noqa: B010


def _die_around(*names: str, before: bool) -> None:
    thread = threading.get_ident()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if threading.get_ident() != thread:
                return function(*args, **options)
            if before:
                die()
            function(*args, **options)
            die()

        return call

    for name in names:
        setattr(os, name, wrap(getattr(os, name)))
