"""The sections that `figures.py` writes into documents: a file per kind of results."""
