"""The ways a run can end other than well, and the exit code of each.

A user's mistake is raised as one of these with a message that names the flag or the file:line;
`utils.cli` prints it as one line. Anything else that escapes is a bug of ours and shows a traceback.
"""


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Fault(Exception):
    """A run cannot go on, for a reason the user can act on."""

    exit_code = 1
    is_told = False  # the first process of this machine says it


class ArgumentFault(Fault):
    """A flag is unknown, missing, of the wrong type or out of range."""

    exit_code = 2


class DataFault(Fault):
    """A data, prompt or template file does not hold what it must."""

    exit_code = 3


class ModelFault(Fault):
    """A base model, adapter or checkpoint is missing, broken or does not fit."""

    exit_code = 4


class EnvironmentFault(Fault):
    """The machine refuses: disk full, no network, port in use, no device memory."""

    exit_code = 5


class UnjudgedFault(Fault):
    """A judging run came to its end, and some answers have no score."""

    exit_code = 6


class Interrupted(Fault):
    """A signal asked the run to end; the same command goes on from the last checkpoint."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple:  # it travels between processes: pickle would call with the message alone
        return Interrupted, (self.exit_code - 128, str(self))
