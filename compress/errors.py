"""The one exception for a user's own mistake: it is shown as a single line, never as a traceback."""


class UserError(Exception):
    """A mistake that the user can mend: what was received, what was expected, what to do.

    `__main__` prints it as the last line on stderr and exits with status 2.
    """

    def __init__(self, received: str, expected: str, mend: str):
        super().__init__(received, expected, mend)
        self.received, self.expected, self.mend = (" ".join(str(part).split()) for part in (received, expected, mend))

    def __str__(self) -> str:
        return f"received {self.received}; expected {self.expected}; to mend it: {self.mend}"
