"""Batch jobs that callers of the service start: each is a job of its own, on the same cluster.

asked.py      what a caller asks for, and the command line that does it
places.py     which locations a caller may name
launching.py  what is needed of whatever runs jobs
status.py     how far a batch is
results.py    what came of it
desk.py       the counter: started, found again, watched, cancelled, handed out
"""

from eagleray.serving.batches.batch_jobs import BatchJobs
from eagleray.serving.batches.launcher import Capacity, Launched, Launcher
from eagleray.serving.batches.path_policy import BatchPathPolicy
from eagleray.serving.batches.spec import BatchBody
from eagleray.serving.batches.status import BatchStatus

__all__ = [
    "BatchBody",
    "BatchJobs",
    "BatchPathPolicy",
    "BatchStatus",
    "Capacity",
    "Launched",
    "Launcher",
]
