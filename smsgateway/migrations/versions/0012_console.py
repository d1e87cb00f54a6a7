"""Sessions of the console and what was changed through it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SCHEMA = "smsgateway"


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "console_session",
        sa.Column("session_hash", sa.LargeBinary(), nullable=False),
        sa.Column("token_id", sa.Text(collation="C"), nullable=False),
        sa.Column("sealed_token", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("seen_at", moment, nullable=False),
        sa.Column("expires_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("session_hash"),
        schema=SCHEMA,
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index("console_session_expires_at", "console_session", ["expires_at"], schema=SCHEMA)
    op.create_index("console_session_token", "console_session", ["token_id", "created_at"], schema=SCHEMA)
    op.create_table(
        "console_audit",
        sa.Column("brand_id", sa.BigInteger(), nullable=False),
        sa.Column("audit_id", sa.Text(collation="C"), nullable=False),
        sa.Column("request_id", sa.Text(collation="C"), nullable=False),
        sa.Column("token_id", sa.Text(collation="C"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(collation="C"), nullable=False),
        sa.Column("asked", JSONB(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("told", JSONB(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="1", nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("finished_at", moment, nullable=True),
        sa.PrimaryKeyConstraint("brand_id", "audit_id"),
        sa.UniqueConstraint("brand_id", "request_id", name="console_audit_request"),
        sa.CheckConstraint("brand_id >= 0", name="console_audit_brand"),
        sa.CheckConstraint("outcome between 1 and 4", name="console_audit_outcome_known"),
        schema=SCHEMA,
    )
    op.create_index("console_audit_newest", "console_audit", ["audit_id"], schema=SCHEMA)


def downgrade() -> None:
    op.drop_table("console_audit", schema=SCHEMA)
    op.drop_table("console_session", schema=SCHEMA)
