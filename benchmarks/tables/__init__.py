"""The sections that `figures.py` puts into documents: a file for each kind of results."""
