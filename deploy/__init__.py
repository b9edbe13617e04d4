"""How Tollkeeper is run: on one machine, on Kubernetes."""
