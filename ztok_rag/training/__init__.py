"""Checkpoints are trained here.

Files become token ids on disk, weighed once by the plain base; rows drawn from them train the
reader's adapter, the packer and the pointer, and questions the selector, in runs that can be
stopped and resumed.
"""
