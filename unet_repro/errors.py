"""The one exception that means: what was given cannot be used."""


class InputError(ValueError):
    """Bad input, told in one line: what was given, the rule, what would work.

    Raised by every public function of the package that rejects its arguments or files. The
    command line prints its message and exits with code 2; any other exception is a bug of ours.
    """
