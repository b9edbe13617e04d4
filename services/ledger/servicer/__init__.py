"""The ledger's RPCs, a module for each service of the contract: message → model → service → message."""
