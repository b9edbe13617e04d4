"""Reports: an account's figures, and an operator's over all accounts."""
