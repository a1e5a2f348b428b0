"""The one exception that means: the user can fix this, and this sentence says how."""


class UserError(Exception):
    """A wrong parameter, file or teacher. Commands print its text as one line and exit with 2."""
