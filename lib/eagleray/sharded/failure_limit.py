"""How many inputs may fail before a job stops."""

from __future__ import annotations

from dataclasses import dataclass

from eagleray.core.errors import InputError, JobFailedError

__all__ = ["FailureLimit"]


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
            InputError: If it is neither.
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
        raise InputError(f"--max-failures must be like 1% or 200, not {text!r}.")

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
