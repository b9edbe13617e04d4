"""The rules of subscriptions: frozen dataclasses and pure functions, without I/O."""
