"""Owns what the container images are made of, besides the Dockerfiles: locked requirements, health check, drain."""
