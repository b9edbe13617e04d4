"""Owns the import of LiteLLM's public price map: its reading, what it means here, and how it differs from ours."""
