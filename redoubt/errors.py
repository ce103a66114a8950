"""The project's own exceptions. The command line maps them to exit codes, serving to HTTP statuses."""


class RedoubtError(Exception):
    """Anything that Redoubt knows how to explain in one line."""

    exit_code = 1


class InvalidInput(RedoubtError, ValueError):
    """The caller gave something that cannot be used; the message says what would be right."""

    exit_code = 2


class Refused(RedoubtError):
    """The gate said no, and no override was given."""

    exit_code = 3


class Overtaken(RedoubtError):
    """Another version became champion first; the message says which, and who made it so."""


class ArtifactError(RedoubtError):
    """A model folder or a data folder is incomplete, altered or unreadable."""


class RegistryError(RedoubtError):
    """The model registry cannot be reached, or does not hold what was asked for."""


class TrainingDiverged(RedoubtError):
    """The training loss stopped being a finite number; `rows` are the numbers of the batch's pictures."""

    def __init__(self, message: str, *, rows: list[int] | None = None):
        super().__init__(message)
        self.rows = rows or []


def one_of(value: str, valid, what: str) -> str:
    """Return `value` if it is among `valid`.

    Raises:
        InvalidInput: naming every valid choice.
    """
    if value not in valid:
        raise InvalidInput(f"unknown {what} {value!r}: valid ones are {', '.join(sorted(valid))}")
    return value
