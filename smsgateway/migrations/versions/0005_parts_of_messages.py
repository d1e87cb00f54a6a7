"""Which parts of a message a receipt has not yet called delivered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def upgrade() -> None:
    op.add_column("message", sa.Column("parts_open", sa.ARRAY(sa.Text()), nullable=True), schema=SCHEMA)


def downgrade() -> None:
    op.drop_column("message", "parts_open", schema=SCHEMA)
