"""Subscriptions: which plan each account is on, and what ledger and proxy have to know of it."""
