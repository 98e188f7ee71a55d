"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """Bad input or configuration: one clear line that names the thing and the remedy.

    Entry points print the message without a traceback and exit with status 2.
    """
