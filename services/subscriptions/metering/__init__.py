"""The metering pipeline: usage emitted and proxied, its aggregates, quotas, and what Stripe's meters are told."""
