"""The user's faults, one `ValueError` subclass a kind, and the ways a question ends early.

Every message says what is wrong, what was expected, what was got and what to do about it.
"""


class InvalidInputError(ValueError):
    """A parameter, a question or a stage plan that cannot be used."""


class ImageError(ValueError):
    """An image that cannot be read, is too large, or does not fit the model."""


class CheckpointError(ValueError):
    """A model folder that is missing, incomplete, damaged or of an unsupported architecture."""


class CapacityError(ValueError):
    """A question that can never fit in the caches or the context, with the arithmetic."""


class CancelledError(RuntimeError):
    """The question was cancelled, or the engine was closed, before an answer was ready."""


class DeadlineError(TimeoutError):
    """The question's own deadline passed before an answer was ready; it has ended."""


class ListenerError(RuntimeError):
    """The question's own event listener raised, or held the engine up; its cause says how."""
