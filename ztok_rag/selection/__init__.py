"""What to read for a question is chosen here.

Sentences and pieces of texts, how likely each is to answer the question (by words, by an embedding
model and by the checkpoint's relevance network), and how a budget of Z-tokens is spent on them.
"""
