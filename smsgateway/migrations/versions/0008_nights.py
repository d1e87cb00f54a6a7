"""When what is to be sent by day must wait again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def upgrade() -> None:
    for name in ("night_from", "night_until"):
        op.add_column("dispatch", sa.Column(name, sa.DateTime(timezone=True), nullable=True), schema=SCHEMA)


def downgrade() -> None:
    for name in ("night_until", "night_from"):
        op.drop_column("dispatch", name, schema=SCHEMA)
