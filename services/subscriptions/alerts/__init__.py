"""Alerts: what is worth telling a customer at once, and how it reaches them."""
