"""Model calls in a typed form, for internal services."""
