"""The benchmark of subscriptions."""
