"""The edge: Envoy's configuration, derived from the contracts."""
