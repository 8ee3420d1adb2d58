"""Z-tokens in a folder or in Redis, and Z-tokens inside a prompt.

A `ZStore` keeps codes, and the secret that signs handles. What it asks of a database is the
protocol `Backend`; a folder and Redis speak it. Handles stand for Z-tokens inside a prompt string.
A process shares one default compressor and one default store.
"""
