"""Imports modules in a thread, ahead of the code that will need them."""

from __future__ import annotations

import importlib
import threading

__all__ = ["import_ahead"]


def import_ahead(*names: str) -> None:
    """Import modules in a thread while this process waits for others.

    An import statement that needs one meanwhile waits for it. A module that cannot be imported is
    left to that statement, which raises the error.

    Args:
        names: Full names of the modules.
    """

    def run() -> None:
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError:
                return

    threading.Thread(target=run, name="import-ahead", daemon=True).start()
