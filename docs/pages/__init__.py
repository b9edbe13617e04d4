"""Owns the text of each reference page that follows from the code; `docs.reference` writes them."""
