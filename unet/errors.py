"""The root of every error that a user can mend."""


class UserError(Exception):
    """A mistake in a file, flag or field: expected, found, what to change.

    Command lines print its message as one line and exit with status 2; the service answers 4xx or 503. Any other
    exception is a bug and keeps its traceback.
    """
