"""What the user can fix, said in a sentence that tells how."""


class UserError(Exception):
    """A wrong parameter, file or teacher. Commands print its text as one line and exit with 2."""


class BadShardError(UserError):
    """A tar, or an image in it, that is not what this project writes or reads."""
