"""Z-tokens in LlamaIndex: its LLM, node postprocessor, transformation and embedding model.

Nodes, instrumentation events and token counting belong to it. Nothing here touches the weights or
adapters of a model.
"""
