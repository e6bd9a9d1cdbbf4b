"""InputError: what the user gave cannot be used."""


class InputError(ValueError):
    """Input, or a file or disk, that cannot be used. The message says what is wrong, what is expected and what to do.

    Scripts print it, without a traceback, and exit with status 2.
    """
