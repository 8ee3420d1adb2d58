"""Errors that name their cause and the remedy. All derive from `ZtokError`."""


class ZtokError(Exception):
    """Base of every error this package raises on bad input or a bad environment."""


class CheckpointError(ZtokError):
    """A checkpoint or base LLM is missing, damaged, or does not fit the other."""


class SequenceError(ZtokError):
    """A `ZSequence` is malformed, or was made by another checkpoint."""


class HandleError(ZtokError):
    """A handle in a prompt is forged, edited, or belongs to another installation."""


class DataError(ZtokError):
    """A training or evaluation record is malformed, or a task is unknown."""
