"""Checkpoints are trained here.

Passages and questions become packed batches; the compressor, the reader and the relevance network
learn from them, one after the other, in runs that can be stopped and resumed.
"""
