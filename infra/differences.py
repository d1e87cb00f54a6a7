"""What a reconciliation finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure that is not what the records say.

    `check` names the rule that is broken; `subject` the package, freeze, payment, message or queue entry.
    """

    check: str
    brand_id: int
    subject: str
    figure: str
    expected: str
    found: str

    def as_dict(self) -> dict[str, object]:
        """For machine-readable output."""
        return asdict(self)
