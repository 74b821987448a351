"""The one exception for users' mistakes."""


class UserError(ValueError):
    """A mistake in what the user gave: an argument, a config, a file.

    The message says what is wrong, which value was received, and which choices there are. Commands
    print it as one line; every other exception is a defect of the program and keeps its traceback.
    """
