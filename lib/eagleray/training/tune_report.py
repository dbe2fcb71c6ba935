"""How a tuning went, for people: the rows of its ranking, one sentence, and its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eagleray.reports import dot_plot, learning_curves, render_page
from eagleray.training.search_space import Range
from eagleray.training.spec import TrainSpec
from eagleray.training.trials import Trial, TuneResult

__all__ = ["Row", "metric_name", "ranking_rows", "render_tune_page", "summarize"]


@dataclass(frozen=True)
class Row:
    """A trial as it is shown; all text.

    Attributes:
        rank: Empty for a trial without a metric.
        name: Its number, and whether it is the default.
        score: Its metric.
        epochs: How many it ran.
        values: Of the searched fields, in their order.
        state: As `Trial` has it.
        reason: Empty where there is none.
        gray: Whether it did not run to its end.
    """

    rank: str
    name: str
    score: str
    epochs: str
    values: tuple[str, ...]
    state: str
    reason: str
    gray: bool


def metric_name(tuned: TuneResult) -> str:
    """Return the metric as people read it."""
    return tuned.metric.replace("_", " ")


def ranking_rows(tuned: TuneResult) -> list[Row]:
    """Return a row for each trial: the ranked ones, then those without a rank."""
    rest = [trial for trial in tuned.trials if not trial.is_ranked]
    ranked = [_row(trial, str(place)) for place, trial in enumerate(tuned.ranking, start=1)]
    return [*ranked, *(_row(trial, "") for trial in rest)]


def _row(trial: Trial, rank: str) -> Row:
    return Row(
        rank=rank,
        name=f"{trial.number}{' default' if trial.number == 1 else ''}",
        score="" if trial.score is None else f"{trial.score:.4f}",
        epochs=str(len(trial.epochs)),
        values=tuple(map(_shown, trial.values.values())),
        state=trial.state,
        reason=trial.reason or "",
        gray=trial.state != "finished",
    )


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summarize(tuned: TuneResult) -> str:
    """Say in one sentence what the search has gained on the validation part."""
    best, default, metric = tuned.best, tuned.default, metric_name(tuned)
    if tuned.gain is None:
        return f"Trial {best.number} is the best, {metric} {best.score:.4f}; the default failed."
    if tuned.gain <= 0:
        return f"Nothing that was tried is better than the default, {metric} {default.score:.4f}."
    return (
        f"Trial {best.number} is the best, {metric} {best.score:.4f}; the default reaches "
        f"{default.score:.4f}, which is {tuned.gain:.4f} less."
    )


def render_tune_page(tuned: TuneResult, spec: TrainSpec, run: str) -> bytes:
    """Make the page of a tuning.

    Args:
        tuned: How it went.
        spec: Of the best trial.
        run: Its name.
    """
    states = [trial.state for trial in tuned.trials]
    num_epochs = sum(len(trial.epochs) for trial in tuned.trials)
    facts = {
        "trials": f"{len(tuned.trials)}",
        "stopped early": f"{states.count('stopped')}",
        "failed or refused": f"{states.count('failed') + states.count('refused')}",
        "epochs run": f"{num_epochs} of {len(tuned.trials) * spec.epochs}",
        f"best {metric_name(tuned)}": f"{tuned.best.score:.4f}",
    }
    return render_page(
        "tune.html.j2",
        title=f"Tuning {run}",
        facts=facts,
        summarize=summarize(tuned),
        metric=metric_name(tuned),
        fields=list(tuned.space.searched),
        rows=ranking_rows(tuned),
        plots=[_epochs_plot(tuned), *_field_plots(tuned)],
        specification=spec.to_yaml(),
        space=tuned.space.to_yaml(),
    )


def _epochs_plot(tuned: TuneResult) -> str:
    best = "the default" if tuned.best == tuned.default else f"trial {tuned.best.number}"
    names = {tuned.best.key: f"best: {best}"}
    names.setdefault(tuned.default.key, "the default")
    # The named ones are drawn first, so that they have the same colours on every page.
    trials = sorted(
        tuned.trials, key=lambda trial: list(names).index(trial.key) if trial.key in names else 2
    )
    return learning_curves(
        [(trial.scores, names.get(trial.key), trial.state != "finished") for trial in trials],
        title="All trials on the validation part",
        x_label="epoch",
        y_label=metric_name(tuned),
    )


def _field_plots(tuned: TuneResult) -> list[str]:
    """Draw the metric against each field that is a number."""
    plots = []
    for name, domain in tuned.space.searched.items():
        numbers = [trial.values[name] for trial in tuned.ranking]
        if any(isinstance(value, (bool, str)) or value is None for value in numbers):
            continue
        points = [
            (float(trial.values[name]), trial.score, trial.state != "finished")
            for trial in tuned.ranking
            if trial.score is not None
        ]
        plots.append(
            dot_plot(
                points,
                title=name.replace("_", " "),
                x_label=name,
                y_label=metric_name(tuned),
                logarithmic=isinstance(domain, Range) and domain.kind == "log_uniform",
            )
        )
    return plots
