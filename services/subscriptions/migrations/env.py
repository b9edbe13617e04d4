"""Runs this service's migrations; see services.kit.migrations."""

from services.kit.migrations import run_environment

run_environment()
