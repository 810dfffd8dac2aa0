"""The one exception that means: the user has to change something."""


class UserError(Exception):
    """A mistake of the user's, in one line that says what to change.

    Commands print it as ``error: <message>`` and exit with code 2. The message names the key, the file,
    the row or the column, what was found and what is allowed.
    """
