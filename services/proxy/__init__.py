"""The proxy: API keys, admission, provider calls and their settlement."""
