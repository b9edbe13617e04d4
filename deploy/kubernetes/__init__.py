"""Owns the manifests, and the commands that bring one part to a cluster, take it back and scale it."""
