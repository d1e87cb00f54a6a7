"""The broken ledgers of `make prove` can be made of the code as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.mutations import MUTATIONS, Edit, Mutation, problems

ROOT = Path(__file__).resolve().parents[2]


def test_every_mutation_finds_its_text() -> None:
    """A change of the ledger moves the mistakes along, or says that they have to be made anew."""
    assert problems(ROOT) == []
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


def test_a_text_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """It is not passed over, and nothing is changed."""
    (tmp_path / "a.py").write_text("x = 1\n")
    mutation = Mutation("gone", "", (Edit("a.py", "x = 1", "x = 2"), Edit("a.py", "y", "z")))
    with pytest.raises(ValueError, match="has 0 times: y"):
        mutation.apply(tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = 1\n"
