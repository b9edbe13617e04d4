"""Owns the wire formats: how each provider's request is read and its answer written, one module per format."""
