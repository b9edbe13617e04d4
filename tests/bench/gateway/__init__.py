"""The gateway's benchmark: model calls through Envoy with every check on, beside a bare Envoy and gRPC echo."""
