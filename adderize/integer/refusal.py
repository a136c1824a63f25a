"""Why an operation stays out of a network of shifts."""


class RefusedError(Exception):
    """An operation has no form of shifts and additions, or of integers; says why."""
