"""`ZTokenIndex`: documents, their vectors and their Z-tokens in one folder, changed as a whole."""
