"""Owns the sandbox peers: servers that stand in for the outside world on a developer's machine and in tests."""
