"""Pricing's benchmark: how soon a call is priced, in process and over gRPC, beside a bare gRPC echo."""
