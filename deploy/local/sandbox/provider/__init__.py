"""Owns the sandbox provider: one server that speaks the wire formats of all five model providers. See README.md."""
