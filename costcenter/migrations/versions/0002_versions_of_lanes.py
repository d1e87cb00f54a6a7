"""Lanes have a version, by which a process knows that nobody else has changed their brands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "lane", sa.Column("version", sa.BigInteger(), server_default="0", nullable=False), schema="costcenter"
    )


def downgrade() -> None:
    op.drop_column("lane", "version", schema="costcenter")
