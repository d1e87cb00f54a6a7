"""Subcommands that call the services."""
