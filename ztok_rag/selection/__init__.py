"""Query-aware selection: which parts of retrieved texts a question needs.

Texts are cut into sentences and pieces. Their scores come from the question's words, an embedding
model and the checkpoint's relevance model. A budget of Z-tokens is spent on the best pieces.
"""
