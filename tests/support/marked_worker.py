"""A worker that dies at marked images, on a Ray that was started without the test hook."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

from eagleray.batch.worker import ShardWorker
from eagleray.sharded.attempts import ShardJournal
from tests.support.killers import HOOKS, killer_environment


class MarkedImagesKill(ShardWorker):
    """Loads the hook that every Python loads at its start if the environment says so."""

    def __init__(self, context: Any, journal: ShardJournal) -> None:
        os.environ |= killer_environment()  # for the sandbox's process
        spec = importlib.util.spec_from_file_location("hook", HOOKS / "sitecustomize.py")
        assert spec is not None
        assert spec.loader is not None
        hook = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(hook)
        hook.stand_before_the_decoders(sys.modules["eagleray.imaging.decode"])
        super().__init__(context, journal)
