"""The errors that a user of pyflow can meet. Each message names what came, what was expected, and the way out."""


class PyflowError(Exception):
    """Base of every error that pyflow raises on purpose."""


class InvalidInput(PyflowError, ValueError):
    """A value given at the public border does not fit."""


class InvalidArtefact(PyflowError, ValueError):
    """A checkpoint, engine or pairs folder is damaged, incomplete, or from another version."""


class NotFinite(PyflowError, ArithmeticError):
    """A NaN or an infinity came out of a network or a loss; nothing of it was kept."""


class BackendUnavailable(PyflowError, RuntimeError):
    """What was asked for needs a package or machine feature that is not here."""
