"""How many inputs may fail before a job stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from eagleray.core.errors import JobFailedError

__all__ = ["FailureLimit", "FailureLimitText"]


@dataclass(frozen=True, slots=True)
class FailureLimit:
    """How many inputs may fail before a job stops: a share of all, or a number; or any number.

    Attributes:
        share: Share of all inputs, 0 to 1; None for a number.
        number: Number of inputs; None for a share.
    """

    share: float | None = None
    number: int | None = None

    @classmethod
    def parse(cls, text: str) -> FailureLimit:
        """Read `1%`, `0.5 %` or `200`.

        Raises:
            ValueError: If the text is neither.
        """
        try:
            if text.strip().endswith("%"):
                share = float(text.strip()[:-1]) / 100
                if 0 <= share <= 1:
                    return cls(share=share)
            elif int(text) >= 0:
                return cls(number=int(text))
        except ValueError:
            pass
        raise ValueError(f"write a share such as 1%, or a number such as 200, not {text!r}")

    def allows(self, num_failed: int, num_rows: int) -> bool:
        """Whether so many failures of so many inputs are within the limit."""
        if self.share is not None:
            return num_failed <= self.share * num_rows
        return self.number is None or num_failed <= self.number

    def check(self, num_failed: int, num_done: int, num_rows: int, job_id: str) -> None:
        """Stop a job in which too many inputs failed.

        Args:
            num_failed: Number of failures so far.
            num_done: Number of inputs with a result so far.
            num_rows: Number of all inputs.
            job_id: Identifier of the job.

        Raises:
            JobFailedError: If they are more than the limit allows.
        """
        if not self.allows(num_failed, num_rows):
            raise JobFailedError(
                f"{num_failed:,} of {num_done:,} images failed so far, more than --max-failures "
                f"allows; what is done is kept. See `eagleray jobs show {job_id}`, and run the "
                "same command with a higher limit to resume."
            )


def _valid(text: str) -> str:
    FailureLimit.parse(text)
    return text


FailureLimitText = Annotated[str, Field(coerce_numbers_to_str=True), AfterValidator(_valid)]
"""A failure limit as users write it."""
