"""Run by Alembic for each of its commands."""

from infra.migration import run_environment
from smsgateway.schema import metadata

run_environment(metadata)
