"""Owns the sandbox Stripe: a stateful stand-in for Stripe's API, spoken to through the real `stripe` library."""
