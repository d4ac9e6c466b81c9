"""Errors of trust and transport.

    OtaError
    ├── ReleaseError     a release, or the folder it is made from, breaks a rule of the format
    ├── TrustError       something signed, expected or remembered does not fit what was received
    ├── PackageError     a package is damaged, hostile, for another base, or cannot be written to disk
    ├── RepositoryError  the repository on disk cannot be opened, read or published to
    ├── DatabaseError    the server's database cannot be used
    └── ServerError      a server cannot be reached, or answers with an error

A caller's own mistake (a bad argument) is a ValueError.
"""


class OtaError(Exception):
    """Base of every error this package raises."""


class ReleaseError(OtaError):
    """A release breaks a rule: an unsafe path, a cap, a field that is missing; the message names it."""


class TrustError(OtaError):
    """What was received is not what the repository's keys signed, or is older than what was seen before."""


class PackageError(OtaError):
    """A package cannot become the files of its release; nothing of it is left behind."""


class RepositoryError(OtaError):
    """A repository on disk is missing, unsafe or cannot take what is asked; the message says what to do."""


class DatabaseError(OtaError):
    """The server's database cannot be opened, is of another version, or is in use by another server."""


class ServerError(OtaError):
    """A server is out of reach or refuses.

    Attributes:
        status: The HTTP status, or None when there was no answer.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
