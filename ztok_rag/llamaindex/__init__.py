"""LlamaIndex classes for Z-tokens: LLM, node postprocessor, transformation, embedding model.

They come with a node class, instrumentation events and token counting. Nothing here knows of the
weights and adapters of a model.
"""
