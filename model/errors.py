"""The one error that means: what the user gave cannot be used."""


class InputError(ValueError):
    """Bad input: its message says what came, what is allowed and the likely cause, in one or two lines.

    Scripts print it without a traceback and exit with status 2.
    """
