"""Texts become Z-tokens here, and Z-tokens are read.

The base LLM, the checkpoint and its networks, the allocation of Z-tokens, their codes and file
formats, the compressor and the reader. Nothing here knows of LlamaIndex, of where codes are kept,
or of how the Z-tokens for a question are chosen.
"""
