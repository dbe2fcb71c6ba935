"""What a model must reach before it goes into production: a file of lines, each a comparison.

    # kpi.txt
    f1_macro >= 0.98
    recall[defect] >= 0.99
    accuracy >= current - 0.005

`current` is what the version that holds the alias reaches on the same images.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eagleray.core.errors import InputError, UnknownNameError
from eagleray.io import storage

__all__ = ["Kpi", "Verdict", "judge", "parse_kpis", "read_kpis", "require_known"]

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
        metric: Name, as in `recall[defect]`.
        comparison: `>=`, `<=`, `>` or `<`.
        limit: What the metric is compared with; added to the current holder's if that counts.
        from_current: Whether `limit` is a margin on what the current holder reaches.
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
class Verdict:
    """Whether a model reaches one KPI.

    Attributes:
        kpi: What was asked.
        value: What the model has.
        limit: The number that it was compared with; None where nobody holds the alias yet.
        passed: Whether it is good enough.
    """

    kpi: Kpi
    value: float
    limit: float | None
    passed: bool

    def as_json(self) -> dict[str, object]:
        """For scripts, and for the history."""
        return {
            "kpi": str(self.kpi),
            "value": self.value,
            "limit": self.limit,
            "passed": self.passed,
        }

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.kpi}: {self.value:.6g}, and nobody holds the alias yet"
        word = "reached" if self.passed else "missed"
        against = f" (current: {self.limit - self.kpi.limit:.6g})" if self.kpi.from_current else ""
        return f"{self.kpi}: {word} with {self.value:.6g}{against}"


def read_kpis(location: str) -> tuple[Kpi, ...]:
    """Read a KPI file.

    Raises:
        InputError: It is not there, or a line is no comparison.
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
        InputError: With the line that is no comparison; or there is none at all.
    """
    kpis = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content.startswith("#"):  # labels may hold one farther on
            continue
        found = _LINE.fullmatch(content)
        if found is None:
            raise InputError(
                f"{where}, line {number}: {content!r} is no KPI; write a metric, >=, <=, > or <, "
                "and a number or `current`, as in `recall[defect] >= 0.99`."
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
    """Refuse KPIs on metrics that an evaluation will not have, before it is run.

    Raises:
        UnknownNameError: With the nearest names.
    """
    for kpi in kpis:
        if kpi.metric not in metrics:
            raise UnknownNameError(f"metric that {where} asks for", kpi.metric, metrics)


def judge(
    kpis: Sequence[Kpi],
    metrics: Mapping[str, float],
    current: Mapping[str, float] | None = None,
) -> tuple[Verdict, ...]:
    """Compare a model's figures with every KPI.

    Args:
        kpis: What is asked.
        metrics: Of the model.
        current: Of the version that holds the alias, on the same images; None if nobody does, and
            then KPIs that compare with it are reached.

    Raises:
        UnknownNameError: A KPI names a metric that there is none of.
    """
    require_known(kpis, list(metrics), where="the KPI file")
    verdicts = []
    for kpi in kpis:
        value = metrics[kpi.metric]
        limit: float | None = kpi.limit
        if kpi.from_current:
            limit = None if current is None else current.get(kpi.metric, -math.inf) + kpi.limit
        passed = limit is None or bool(_COMPARISONS[kpi.comparison](value, limit))
        verdicts.append(Verdict(kpi, value, limit, passed))
    return tuple(verdicts)
