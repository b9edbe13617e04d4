"""The implementation: four services, and what they share (kit, rating)."""
