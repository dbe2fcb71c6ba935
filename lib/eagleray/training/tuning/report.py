"""Renders the result of a tuning: the rows of its ranking, one sentence, and its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.distributions import FloatDistribution

from eagleray.reports import dot_plot, learning_curves, render_page
from eagleray.training.spec import TrainSpec
from eagleray.training.tuning.trials import Trial, TuneResult

__all__ = ["Row", "ranking_rows", "render_tune_page", "summarize"]


@dataclass(frozen=True)
class Row:
    """A trial as text.

    Attributes:
        rank: Rank of the trial; empty if it is not ranked.
        name: Number of the trial, and whether it is the default.
        score: Metric of the trial.
        epochs: Number of its epochs.
        values: Values of the searched fields, in their order.
        state: State of the trial.
        reason: Reason why it failed or is invalid; empty if it is neither.
        gray: Whether it did not finish.
    """

    rank: str
    name: str
    score: str
    epochs: str
    values: tuple[str, ...]
    state: str
    reason: str
    gray: bool


def ranking_rows(result: TuneResult) -> list[Row]:
    """Return a row for each trial: the ranked ones first."""
    rest = [trial for trial in result.trials if not trial.is_ranked]
    ranked = [_row(trial, str(place)) for place, trial in enumerate(result.ranking, start=1)]
    return [*ranked, *(_row(trial, "") for trial in rest)]


def _row(trial: Trial, rank: str) -> Row:
    return Row(
        rank=rank,
        name=f"{trial.number}{' default' if trial.number == 1 else ''}",
        score="" if trial.score is None else f"{trial.score:.4f}",
        epochs=str(len(trial.epochs)),
        values=tuple(map(_format_value, trial.values.values())),
        state=trial.state,
        reason=trial.reason or "",
        gray=trial.state != "finished",
    )


def _format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summarize(result: TuneResult) -> str:
    """Return one sentence on the gain of the search on the validation split."""
    best, default, metric = result.best, result.default, result.monitor.title
    winner = f"Trial {best.number} is the best with {metric} {best.score:.4f}"
    if result.gain is None:
        return f"{winner}; the default failed."
    if result.gain <= 0:
        return f"No trial is better than the default with {metric} {default.score:.4f}."
    than = "less" if result.monitor.mode == "max" else "more"
    return f"{winner}; the default has {default.score:.4f}, which is {result.gain:.4f} {than}."


def render_tune_page(result: TuneResult, spec: TrainSpec, run: str) -> bytes:
    """Make the page of a tuning.

    Args:
        result: Result of the tuning.
        spec: Specification of the best trial.
        run: Name of the tuning run.
    """
    states = [trial.state for trial in result.trials]
    num_epochs = sum(len(trial.epochs) for trial in result.trials)
    facts = {
        "trials": f"{len(result.trials)}",
        "stopped early": f"{states.count('stopped')}",
        "failed or invalid": f"{states.count('failed') + states.count('invalid')}",
        "epochs run": f"{num_epochs} of {len(result.trials) * spec.epochs}",
        result.monitor.best_title: f"{result.best.score:.4f}",
    }
    return render_page(
        "tune.html.j2",
        title=f"Tuning {run}",
        facts=facts,
        summary=summarize(result),
        metric=result.monitor.title,
        fields=list(result.space.searched),
        rows=ranking_rows(result),
        plots=[_epochs_plot(result), *_field_plots(result)],
        specification=spec.to_yaml(),
        space=result.space.to_yaml(),
    )


def _epochs_plot(result: TuneResult) -> str:
    best = "the default" if result.best == result.default else f"trial {result.best.number}"
    names = {result.best.key: f"best: {best}"}
    names.setdefault(result.default.key, "the default")
    # The named trials are drawn first, so that they have the same colours on every page.
    trials = sorted(
        result.trials, key=lambda trial: list(names).index(trial.key) if trial.key in names else 2
    )
    return learning_curves(
        [(trial.scores, names.get(trial.key), trial.state != "finished") for trial in trials],
        title="Validation metric by epoch",
        x_label="epoch",
        y_label=result.monitor.title,
    )


def _field_plots(result: TuneResult) -> list[str]:
    """Plot the metric against each numeric field."""
    plots = []
    for name, distribution in result.space.searched.items():
        values = [trial.values[name] for trial in result.ranking]
        if any(isinstance(value, (bool, str)) or value is None for value in values):
            continue
        points = [
            (float(trial.values[name]), trial.score, trial.state != "finished")
            for trial in result.ranking
            if trial.score is not None
        ]
        plots.append(
            dot_plot(
                points,
                title=name.replace("_", " "),
                x_label=name,
                y_label=result.monitor.title,
                logarithmic=isinstance(distribution, FloatDistribution) and distribution.log,
            )
        )
    return plots
