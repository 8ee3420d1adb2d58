"""`ZTokenIndex`: documents, their vectors and their Z-tokens in one folder, with atomic changes."""
