"""The ledger's benchmark: what it does a second, beside pgbench and a bare gRPC echo on the same machine."""
