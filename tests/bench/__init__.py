"""Benchmarks. They measure and report, and gate nothing."""
