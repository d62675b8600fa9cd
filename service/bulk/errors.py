"""What stops the command `embed`: an error whose sentence is all that its user sees."""


class CommandError(Exception):
    """The command cannot go on; its text says why and what to do."""
