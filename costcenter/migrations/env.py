"""What Alembic runs to migrate the ledger's schema."""

from costcenter.schema import metadata
from infra.migration import run_environment

run_environment(metadata)
