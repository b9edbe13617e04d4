"""The ledger: accounts, grants, atomic holds and debits, limits, the journal and usage records."""
