"""KPIs of a model: a file of lines, each a comparison of a metric with a limit.

    # kpi.txt
    f1_macro >= 0.98
    recall[defect] >= 0.99
    accuracy >= current - 0.005

`current` is the metric of the version that has the alias now, on the same images. A metric on
images that a model was trained on is no evidence, so it passes no KPI.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eagleray.core.errors import InputError
from eagleray.evaluation.leakage import NO_LEAKAGE, Leakage
from eagleray.io import storage
from eagleray.tasks.metric_names import require_metric

__all__ = ["Kpi", "KpiResult", "check_kpis", "parse_kpis", "read_kpis", "require_known"]

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_LINE = re.compile(
    rf"(?P<metric>[A-Za-z_]\w*(?:\[.+\])?)\s*(?P<comparison>>=|<=|>|<)\s*"
    rf"(?:(?P<current>current)\s*(?:(?P<sign>[+-])\s*(?P<margin>{_NUMBER}))?|(?P<limit>{_NUMBER}))"
)


@dataclass(frozen=True, slots=True)
class Kpi:
    """One line of a KPI file.

    Attributes:
        metric: Name of the metric, as in `recall[defect]`.
        comparison: `>=`, `<=`, `>` or `<`.
        limit: Number that the metric is compared with, or a margin on the current version's metric.
        from_current: Whether `limit` is such a margin.
    """

    metric: str
    comparison: str
    limit: float
    from_current: bool = False

    def __str__(self) -> str:
        if not self.from_current:
            return f"{self.metric} {self.comparison} {self.limit:g}"
        margin = f" {'-' if self.limit < 0 else '+'} {abs(self.limit):g}" if self.limit else ""
        return f"{self.metric} {self.comparison} current{margin}"


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
        against = f" (current: {self.limit - self.kpi.limit:.6g})" if self.kpi.from_current else ""
        return f"{self.kpi}: {word} with {self.value:.6g}{against}"


def read_kpis(location: str) -> tuple[Kpi, ...]:
    """Read a KPI file.

    Raises:
        InputError: If the file is missing, or a line is not a comparison.
    """
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
                "<, and a number or `current`, as in `recall[defect] >= 0.99`."
            )
        if found["current"]:
            limit = float((found["sign"] or "") + (found["margin"] or "0"))
        else:
            limit = float(found["limit"])
        kpis.append(Kpi(found["metric"], found["comparison"], limit, bool(found["current"])))
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
        if kpi.from_current:
            limit = None if current is None else current.get(kpi.metric, -math.inf) + kpi.limit
        reached = limit is None or bool(_COMPARISONS[kpi.comparison](value, limit))
        leaked = leakage.finding or (current_leakage.finding if kpi.from_current else "")
        kpi_results.append(KpiResult(kpi, value, limit, reached and not leaked, leaked))
    return tuple(kpi_results)
