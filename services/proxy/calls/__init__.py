"""Model calls: read, admitted, held, made, metered and settled."""
