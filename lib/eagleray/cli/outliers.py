"""`eagleray models outliers`: gives a registered classifier an outlier score."""

from __future__ import annotations

from typing import Any

import typer

from eagleray.cli.common import JsonOption
from eagleray.cli.console import Console, command_errors
from eagleray.cli.options import read_spec, with_spec_options
from eagleray.outliers.spec import OutliersSpec

__all__ = ["outliers_app"]

outliers_app = typer.Typer()


@outliers_app.command("outliers")
@with_spec_options(OutliersSpec, argument="model")
def score_outliers(fields: dict[str, Any], json_output: JsonOption = False) -> None:
    """Give a classifier an outlier score, and register the result as the model's next version.

    The score of an image is the share of the validation images that are less unusual. The version
    that it is made from stays as it is, and the new one predicts the same labels.
    """
    with command_errors():
        console = Console(json_output=json_output)
        from eagleray.core.settings import read_settings
        from eagleray.outliers.job import open_outliers, run_outliers

        settings = read_settings()
        settings.make_home()
        spec = read_spec(OutliersSpec, fields).with_settings(settings)
        job = open_outliers(spec, settings)
        for note in job.notes:
            console.note(note)
        summary = run_outliers(job, console)
        fitted = summary.fitted
        if fitted.num_failed:
            console.warn(f"{fitted.num_failed:,} images cannot be read.")
        if json_output:
            console.emit(summary.as_json())
            return
        aliases = ", ".join(summary.version.aliases)
        console.say(
            f"{summary.version.reference} is registered{f' as {aliases}' * bool(aliases)}, with an "
            f"outlier score: features of {fitted.num_train:,} training images, levels of "
            f"{fitted.num_validation:,} validation images."
        )
