"""KPIs of a model: a file of lines, each a comparison of a metric with a limit.

    # kpi.txt
    f1_macro >= 0.98
    recall[defect] >= 0.99
    accuracy >= current - 0.005
    accuracy >= parent - 0.005

`current` is the metric of the version that has the alias now, on the same images; `parent` is that
of the version that the model was made from, such as the float version of a quantized one. A metric
on images that a model was trained on is no evidence, so it passes no KPI.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from eagleray.core.errors import InputError
from eagleray.evaluation.leakage import NO_LEAKAGE, Leakage
from eagleray.io import storage
from eagleray.tasks.metric_names import require_metric

__all__ = [
    "KPI_TEXT",
    "Baseline",
    "Kpi",
    "KpiResult",
    "check_kpis",
    "describe_kpis",
    "parse_kpis",
    "read_kpis",
    "require_known",
]

Baseline = Literal["current", "parent"]
"""A version whose metric a KPI compares with: that of the alias, or that of the lineage."""

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LINE = re.compile(
    rf"(?P<metric>[A-Za-z_]\w*(?:\[.+\])?)\s*(?P<comparison>>=|<=|>|<)\s*"
    rf"(?:(?P<baseline>current|parent)\s*(?:(?P<sign>[+-])\s*(?P<margin>{_NUMBER}))?|(?P<limit>{_NUMBER}))"
)


@dataclass(frozen=True, slots=True)
class Kpi:
    """One line of a KPI file.

    Attributes:
        metric: Name of the metric, as in `recall[defect]`.
        comparison: `>=`, `<=`, `>` or `<`.
        limit: Number that the metric is compared with, or a margin on the metric of the baseline.
        baseline: The version that `limit` is a margin on; None if it is a number of its own.
    """

    metric: str
    comparison: str
    limit: float
    baseline: Baseline | None = None

    def __str__(self) -> str:
        if self.baseline is None:
            return f"{self.metric} {self.comparison} {self.limit:g}"
        margin = f" {'-' if self.limit < 0 else '+'} {abs(self.limit):g}" if self.limit else ""
        return f"{self.metric} {self.comparison} {self.baseline}{margin}"


@dataclass(frozen=True, slots=True)
class KpiResult:
    """Whether a model passes one KPI.

    Attributes:
        kpi: The KPI.
        value: Metric of the model.
        limit: Number that it was compared with; None if the alias was unset.
        passed: Whether the model passes.
        not_counted: Why the value is no evidence, as a part of a sentence; empty if it is.
    """

    kpi: Kpi
    value: float
    limit: float | None
    passed: bool
    not_counted: str = ""

    def as_json(self) -> dict[str, object]:
        """Return it as JSON, for scripts and for the history."""
        return {
            "kpi": str(self.kpi),
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
            "not_counted": self.not_counted or None,
        }

    def __str__(self) -> str:
        if self.not_counted:
            return f"{self.kpi}: failed, {self.value:.6g} does not count: {self.not_counted}"
        if self.limit is None:
            return f"{self.kpi}: {self.value:.6g}, and the alias was unset"
        word = "passed" if self.passed else "failed"
        against = ""
        if self.kpi.baseline is not None:
            against = f" ({self.kpi.baseline}: {self.limit - self.kpi.limit:.6g})"
        return f"{self.kpi}: {word} with {self.value:.6g}{against}"


KPI_TEXT: Final = "text:"
"""Begins the KPIs themselves where otherwise the location of their file is given."""


def describe_kpis(kpi: str) -> str:
    """Return what messages call the KPIs: their file, or that they came with the request."""
    return "the KPIs of the request" if kpi.startswith(KPI_TEXT) else kpi


def read_kpis(location: str) -> tuple[Kpi, ...]:
    """Read a KPI file.

    Args:
        location: Location of the file; or `KPI_TEXT` and its content.

    Raises:
        InputError: If the file is missing, or a line is not a comparison.
    """
    if location.startswith(KPI_TEXT):
        return parse_kpis(location.removeprefix(KPI_TEXT), where=describe_kpis(location))
    try:
        text = storage.read_bytes(location).decode()
    except FileNotFoundError:
        raise InputError(f"There is no KPI file {location}; check the path.") from None
    except UnicodeDecodeError:
        raise InputError(f"{location} is not a text file, as a KPI file must be.") from None
    except OSError as error:
        raise InputError(f"Cannot read {location}: {error.strerror or error}.") from None
    return parse_kpis(text, where=location)


def parse_kpis(text: str, *, where: str) -> tuple[Kpi, ...]:
    """Read the lines of a KPI file.

    Raises:
        InputError: If a line is no comparison, or there is no line.
    """
    kpis = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content.startswith("#"):  # a label may contain one
            continue
        found = _LINE.fullmatch(content)
        if found is None:
            raise InputError(
                f"{where}, line {number}: {content!r} is not a KPI; write a metric, >=, <=, > or "
                "<, and a number, `current` or `parent`, as in `recall[defect] >= 0.99`."
            )
        baseline = cast("Baseline | None", found["baseline"])
        if baseline is not None:
            limit = float((found["sign"] or "") + (found["margin"] or "0"))
        else:
            limit = float(found["limit"])
        kpis.append(Kpi(found["metric"], found["comparison"], limit, baseline))
    if not kpis:
        raise InputError(f"{where} names no KPI; write lines such as `f1_macro >= 0.98`.")
    return tuple(kpis)


def require_known(kpis: Sequence[Kpi], metrics: Sequence[str], *, where: str) -> None:
    """Refuse KPIs on metrics that an evaluation will not compute, before it is run.

    Raises:
        UnknownNameError: If there is no such metric; the message gives the nearest names.
    """
    for kpi in kpis:
        require_metric(kpi.metric, metrics, where=where)


def check_kpis(
    kpis: Sequence[Kpi],
    metrics: Mapping[str, float],
    current: Mapping[str, float] | None = None,
    parent: Mapping[str, float] | None = None,
    *,
    leakage: Leakage = NO_LEAKAGE,
    current_leakage: Leakage = NO_LEAKAGE,
) -> tuple[KpiResult, ...]:
    """Compare a model's metrics with every KPI.

    A KPI fails whatever the metric is if it was measured on images that the model was trained on,
    or is compared with one that was measured on images that the other model was trained on.

    Args:
        kpis: The KPIs.
        metrics: Metrics of the model.
        current: Metrics of the version that has the alias, on the same images; None if the alias is
            unset, and then KPIs that compare with it are passed.
        parent: Metrics of the version that the model was made from, on the same images; needed for
            KPIs that compare with it.
        leakage: The images that the model was trained on.
        current_leakage: The images that the version which has the alias was trained on.

    Raises:
        UnknownNameError: If a KPI names a metric that is not there.
    """
    require_known(kpis, list(metrics), where="KPIs")
    kpi_results = []
    for kpi in kpis:
        value = metrics[kpi.metric]
        limit: float | None = kpi.limit
        if kpi.baseline is not None:
            against = parent if kpi.baseline == "parent" else current
            assert against is not None or kpi.baseline == "current"
            limit = None if against is None else against.get(kpi.metric, -math.inf) + kpi.limit
        reached = limit is None or bool(_COMPARISONS[kpi.comparison](value, limit))
        # What the parent was trained on is part of the model's own leakage.
        leaked = leakage.finding or (current_leakage.finding if kpi.baseline == "current" else "")
        kpi_results.append(KpiResult(kpi, value, limit, reached and not leaked, leaked))
    return tuple(kpi_results)
