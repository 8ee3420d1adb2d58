"""Z-tokens are kept here, and travel as text.

The store that keeps codes on disk, the secret of an installation, the handles that stand for
Z-tokens inside a prompt, and the default compressor and store that a process shares.
"""
