"""API keys: made, looked up, listed and revoked."""
