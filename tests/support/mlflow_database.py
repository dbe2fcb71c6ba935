"""A home with an MLflow database: its tables take seconds to make, so they are made once."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

from eagleray.core.settings import Settings
from eagleray.registry.tracking import connect


def prepare_home(home: Path) -> Path:
    """Give a home the tables that its first use would make, unless it has them."""
    database = home / "mlflow.db"
    if not database.exists():
        home.mkdir(parents=True, exist_ok=True)
        database.write_bytes(_tables())
    return home


@cache
def _tables() -> bytes:
    """Make a database that holds nothing yet; once for each process."""
    with tempfile.TemporaryDirectory() as folder:
        connect(Settings(home=Path(folder)))
        whole = Path(folder) / "whole.db"  # what SQLite keeps in files beside it included
        with closing(sqlite3.connect(Path(folder) / "mlflow.db")) as database:
            database.execute("VACUUM INTO ?", (str(whole),))
        return whole.read_bytes()
