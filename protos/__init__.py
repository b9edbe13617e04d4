"""The contracts, and what is built from them. `protos/gen` is the import root of `tollkeeper`."""
