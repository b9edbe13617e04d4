"""The wire formats that clients speak: what is read of a request, what is changed in it, what its answer used."""
