"""Z-tokens on disk, and Z-tokens inside a prompt.

A `ZStore` keeps codes on disk, and the secret of its folder. Handles stand for Z-tokens inside a
prompt string. A process shares one default compressor and one default store.
"""
