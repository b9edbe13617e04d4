"""The ledger's rules, pure: what an account holds and what each operation does to it. No I/O, no gRPC, no SQL."""
