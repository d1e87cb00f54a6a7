"""Aim: the list of reasons is closed. What the code refuses for is what the documentation lists, with the same status.

The code is read, not run: a refusal that no test provokes must be listed too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEDGER, GATEWAY = ("costcenter", "infra"), ("smsgateway",)
# What makes a refusal of one status with the reason that it is given (infra.errors).
STATUS_OF_MAKER = {"not_found": "NOT_FOUND", "failed_precondition": "FAILED_PRECONDITION"}
# Where a refusal that came from elsewhere is passed on, or a maker takes its reason.
PASSED_ON = {"infra/errors.py", "infra/grpc_status.py", "infra/local_calls.py", "costcenter/service.py"}
# What is refused here becomes a page that a person reads, or JSON for Grafana, no status of a call.
PAGES = ("smsgateway/console/", "smsgateway/grafana/")


def test_the_ledgers_reasons_are_the_documented_ones() -> None:
    """The cost centre refuses for the reasons of the first list of docs/ledger.md, all of them and no other."""
    assert constructed(LEDGER) == documented()[0]


def test_the_gateways_reasons_are_the_documented_ones() -> None:
    """The gateway adds those of the second list."""
    assert constructed(GATEWAY) == documented()[1]


def test_each_reason_names_its_calls() -> None:
    """docs/rpcs.md, which is made from the comments of the RPCs, lists the same reasons with the same statuses."""
    assert rows((ROOT / "docs/rpcs.md").read_text().partition("\n## Refusals\n")[2]) == set.union(*documented())


def constructed(packages: tuple[str, ...]) -> set[tuple[str, str]]:
    """(status, reason) of every refusal that the code of some packages makes."""
    found = set()
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith(PAGES):
                continue
            for call in calls(ast.parse(path.read_text())):
                refusal = status_and_reason(call)
                if refusal is not None:
                    found.add(refusal)
                else:
                    assert name in PASSED_ON, f"{name}:{call.lineno} makes a refusal whose reason cannot be read"
    return found


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that make a refusal and name its reason, or should."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            maker = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if maker in {"Refusal", *STATUS_OF_MAKER}:
                yield node


def status_and_reason(call: ast.Call) -> tuple[str, str] | None:
    """What a call makes; None when that is not written there."""
    maker = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if maker in STATUS_OF_MAKER and call.args:
        status, reason = ast.Constant(STATUS_OF_MAKER[maker]), call.args[0]
    elif len(call.args) >= 2 and isinstance(call.args[0], ast.Attribute):
        status, reason = ast.Constant(call.args[0].attr), call.args[1]
    else:
        return None
    if not isinstance(reason, ast.Constant):
        return None
    return str(status.value), str(reason.value)


def documented() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(status, reason) of the ledger's and of the gateway's list in docs/ledger.md."""
    chapter = (ROOT / "docs/ledger.md").read_text().partition("\n## Refusals\n")[2]
    ledger, _, gateway = chapter.partition("\nThe gateway ")
    return rows(ledger), rows(gateway)


def rows(text: str) -> set[tuple[str, str]]:
    """(status, reason) of the first table of a text; a row may name several reasons."""
    lines = text.partition("\n|---|")[2].partition("\n\n")[0].splitlines()[1:]
    found = set()
    for line in lines:
        status, reasons = (re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:3])
        found |= {(status[0], reason) for reason in reasons}
    return found
