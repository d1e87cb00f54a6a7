"""The safeguards of `make chaos-honest` can be switched off in the code as it is, and its verdict is chaos's."""

from __future__ import annotations

import json
from pathlib import Path

from chaos.honesty import Row, Run, damages
from chaos.safeguards import SAFEGUARDS, problems

ROOT = Path(__file__).resolve().parents[2]


def test_every_safeguard_finds_its_text() -> None:
    """A change of the code moves the switches along, or says that they have to be made anew."""
    assert problems(ROOT) == []
    assert len({each.mutation.name for each in SAFEGUARDS}) == len(SAFEGUARDS)


def test_a_run_is_well_when_it_names_the_damage_and_nothing_else() -> None:
    """Naming nothing, something else, or more than the damage is not."""
    safeguard = next(each for each in SAFEGUARDS if each.damage == {"sent twice"})

    def ok(named: dict[str, int] | None) -> bool:
        return Row(safeguard, safeguard.conditions, Run(1, 1.0, named, "")).ok

    assert ok({"sent twice": 3})
    assert not ok({})
    assert not ok(None)
    assert not ok({"never final": 1})
    assert not ok({"sent twice": 3, "never final": 1})


def test_the_whole_tree_may_have_no_damage() -> None:
    """A run with everything on is well when its verdict is all zero, and not when there is none."""
    conditions = SAFEGUARDS[0].conditions
    assert Row(None, conditions, Run(1, 1.0, {}, "")).ok
    assert not Row(None, conditions, Run(1, 1.0, None, "")).ok


def test_damages_are_what_is_not_zero() -> None:
    """The line that chaos writes is read; an empty verdict is none."""
    assert damages(json.dumps({"verdict": {"sent twice": 2, "never final": 0}}) + "\n") == {"sent twice": 2}
    assert damages(json.dumps({"verdict": {"sent twice": 0}}) + "\n") == {}
    assert damages(json.dumps({"verdict": {}}) + "\n") is None
    assert damages("") is None
