"""Runs the proxy's migrations."""

from services.kit.migrations import run_environment

run_environment()
