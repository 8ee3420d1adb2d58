"""An HTML page of a text, its Z-tokens and what the reader reconstructs from them.

The page, its style and its script are files beside the module that fills them in.
"""
