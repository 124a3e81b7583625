"""The one exception that means "the input is at fault"."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and how to mend it.

    The command line prints it on stderr and exits with status 2. No study that was there is harmed.
    """
