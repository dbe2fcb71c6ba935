"""Reads why workers failed from the errors of the installed Ray."""

from __future__ import annotations

import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    UserCodeException,
    WorkerCrashedError,
)

from eagleray.core.errors import ContractError, EaglerayError, PackageError, UserError
from eagleray.core.ray_errors import first_line, read_failure, read_failure_text

REFUSED = """Traceback (most recent call last):
  File "worker.py", line 1, in __init__
eagleray.core.errors.PackageError: The package is altered: fetch it again.
"""
WRAPPED = f"""{REFUSED}
The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "plan_udf_map_op.py", line 482, in _try_wrap_udf_exception
ray.exceptions.UserCodeException: UDF failed to process a data block.
"""
KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: MapWorker
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"""
NODE = "The actor died because its node has died. Node Id: 1f\n\tthe actor's node was terminated"


class TrainingFailedError(Exception):
    worker_failures = {1: RuntimeError("CUDA error: no device\nat all")}  # noqa: RUF012


def task_error(cause: Exception, traceback: str = REFUSED) -> RayTaskError:
    return RayTaskError("predict", traceback, cause, proctitle="worker", pid=1, ip="127.0.0.1")


def actor_died(text: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = text
    return error


@pytest.mark.parametrize(
    ("error", "message", "killed"),
    [
        (task_error(UserCodeException("UDF failed.")), "altered: fetch it again", False),
        (task_error(UserCodeException("UDF failed."), WRAPPED), "altered: fetch it again", False),
        (ActorDiedError(task_error(PackageError("x"))), "altered: fetch it again", False),
        (task_error(OSError(28, "No space")), "OSError: [Errno 28] No space", False),
        (task_error(KeyError("x"), "KeyError: 'x'"), "KeyError: 'x'", False),
        (TrainingFailedError(), "RuntimeError: CUDA error: no device", False),
        (RuntimeError(), "RuntimeError: no message", False),
        (WorkerCrashedError(), "a worker process died", True),
        (actor_died(KILLED), "a worker process died", True),
        (actor_died(NODE), "a worker's node died", True),
        (NodeDiedError("The node is dead"), "a worker's node died", True),
        (OutOfMemoryError("Task was killed.\nhint"), "a worker's node ran out of memory", True),
    ],
)
def test_a_failure_says_why(error: Exception, message: str, killed: bool) -> None:
    failure = read_failure(error)
    assert failure.message.endswith(message)
    assert failure.sentence == f"{failure.message}."
    assert failure.killed is killed


def test_an_exception_of_eagleray_is_known_by_its_class_and_handed_on_where_ray_carries_it() -> (
    None
):
    cause = PackageError("The package is altered: fetch it again.")
    carried = read_failure(task_error(cause).as_instanceof_cause())
    assert carried.error is cause
    named = read_failure(task_error(UserCodeException("UDF failed."), WRAPPED))
    assert named.error is None
    for failure in (carried, named):
        assert failure.is_a(ContractError, PackageError)
        assert failure.is_a(UserError)
        assert not failure.is_a(ContractError)
    assert not read_failure(task_error(KeyError("x"), "KeyError: 'x'")).is_a(EaglerayError)


def test_the_message_of_a_deployment_is_read_alike() -> None:
    assert read_failure_text(f"A replica failed to start:\n{REFUSED}").is_a(PackageError)
    assert read_failure_text("DEPLOY_FAILED\n").message == "DEPLOY_FAILED"
    assert read_failure_text("").message == "no message"


def test_the_first_line_of_the_cause_is_what_a_start_failed_for() -> None:
    error = RuntimeError("a traceback")
    error.__cause__ = FileExistsError(17, "File exists", "/tmp/ray")
    assert first_line(error) == "[Errno 17] File exists: '/tmp/ray'"
    assert first_line(ValueError("no.\nmore")) == "no"
    assert first_line(ValueError()) == "ValueError"
