"""Owns exports: usage records and transactions as CSV or Parquet files, made piece by piece."""
