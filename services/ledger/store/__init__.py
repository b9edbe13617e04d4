"""All of the ledger's SQL: `batches` for what writes, `reads` for lists and look-ups, `partitions` for months."""
