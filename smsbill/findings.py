"""What `smsbill doctor` tells: findings, as a table for people or JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from smsbill.tables import console, print_json, table

GOOD, NOTE, PROBLEM = "ok", "note", "problem"
_MARKS = {GOOD: "✓", NOTE: "·", PROBLEM: "✗"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `status` is ok, note or problem; `next_step` says what to do."""

    what: str
    status: str
    detail: str
    next_step: str = ""


def tell(findings: Sequence[Finding], as_json: bool) -> int:
    """Print them; 0 when there is no problem, else 1."""
    problems = sum(finding.status == PROBLEM for finding in findings)
    if as_json:
        print_json({"ok": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(_MARKS[each.status], each.what, each.detail, each.next_step) for each in findings]
        console().print(table("", ("", "what", "found", "what to do"), rows))
        console().print(f"{problems} problem{'s' if problems != 1 else ''}" if problems else "Everything is well")
    return 1 if problems else 0
