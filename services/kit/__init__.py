"""Owns what every service needs and no domain word: serving, identity, errors, settings, databases, logs, metrics."""
