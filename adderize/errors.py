"""The one error type of the package."""


class AdderizeError(ValueError):
    """A wrong argument, an unsupported model or an unusable file.

    The message says what was found, what was expected and what to do.
    """
