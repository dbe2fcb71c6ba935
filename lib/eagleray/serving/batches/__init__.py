"""Batch jobs that callers of the service start: each is a job of its own, on the same cluster.

asked.py      what a caller asks for, and the command line that does it
places.py     which locations a caller may name
launching.py  what is needed of whatever runs jobs
status.py     how far a batch is
results.py    what came of it
desk.py       the counter: started, found again, watched, cancelled, handed out
"""

from eagleray.serving.batches.batch_jobs import BatchDesk
from eagleray.serving.batches.launcher import Launched, Launcher, Room
from eagleray.serving.batches.path_policy import BatchPlaces
from eagleray.serving.batches.spec import BatchAsked
from eagleray.serving.batches.status import BatchStatus

__all__ = [
    "BatchAsked",
    "BatchDesk",
    "BatchPlaces",
    "BatchStatus",
    "Launched",
    "Launcher",
    "Room",
]
