"""Errors that are the user's to mend."""


class InputError(ValueError):
    """Bad input, told in one line: which file or argument, what is wrong with it, what to do.

    The command line prints it as ``inspatio: error: ...`` and exits with code 2; nodes and environments
    report it through their own channels. It is never wrapped in a traceback for the user.
    """
