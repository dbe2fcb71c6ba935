"""`eagleray supervise`: submits lost jobs again."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from eagleray.cli.console import Console, command_errors
from eagleray.cli.remote import server_of
from eagleray.core.logs import use_log_format, writes_json
from eagleray.core.settings import read_settings

__all__ = ["supervise_jobs"]


def supervise_jobs(
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Cluster to submit to; default: the cluster in use."),
    ] = None,
    every: Annotated[
        float, typer.Option(help="Seconds between two looks at the records.", min=0.5)
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
) -> None:
    """Submit lost jobs again, as often as their --retries allow, and those whose turn is near.

    It runs until it is interrupted, on any machine that reaches the organisation's database and the
    job server of the cluster, but better not on its head. Several may run. While the database or
    the cluster does not answer, it waits.
    """
    with command_errors():
        console = Console()
        settings = read_settings()
        use_log_format(settings)
        connect = server_of(cluster)
        from eagleray.core.errors import OutageError
        from eagleray.database.store import open_database
        from eagleray.scheduling.records import JobRecords
        from eagleray.scheduling.supervisor import supervise

        records = JobRecords(open_database(settings), settings)
        console.announce(f"Supervising jobs in {records.place}; Ctrl-C ends this.")
        fault = ""
        while True:
            try:
                for event in supervise(records, connect):
                    if writes_json():
                        console.note(event)
                    else:
                        console.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {event}")
                fault = ""
            except OutageError as error:
                if str(error) != fault:
                    console.warn(f"{error} It is tried again every {every:g} s.")
                fault = str(error)
            if once:
                return
            time.sleep(every)
