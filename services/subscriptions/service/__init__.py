"""The use cases of subscriptions. Each method is one; it owns its transaction and holds none while a peer is called."""
