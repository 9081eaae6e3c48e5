"""The errors of this project, written for the engineer on call.

```
KeyRotationError
├── ConfigurationError        bad input; nothing was created
│   └── MissingBlockError     the block of a connection or destination does not exist
├── OtherRunError             another run took over; this one stopped before its next write
├── LedgerError               the ledger cannot be read, or would not fit
├── VerificationError         the new key does not work, or differs from the request
│   └── NotYetAcceptedError   OpenRouter did not accept a key in time
├── DestinationError          a destination does not hold what was written to it
│   └── OverwrittenError      a destination was overwritten after the key was published
└── ServiceError              a call to OpenRouter, Vault, Infisical or a secret block failed
    ├── UnreachableError      no connection, a refused certificate, or no answer in time
    ├── UnauthorizedError     401
    ├── ForbiddenError        403
    ├── NotFoundError         404
    ├── ConflictError         409, or a check-and-set that did not match
    ├── RejectedError         400, 402, 422 and the like
    ├── RateLimitedError      429, 412 or 425: later, perhaps; nothing took effect
    ├── UnavailableError      5xx, a sealed Vault, or a status after which the call may have taken effect
    ├── OtherAccountError     the connection belongs to another account than the key
    └── UnexpectedAnswerError an answer that is not what the service documents
```

Every message is one or two sentences of our own. It never includes a response body, a URL with a query or a secret, so
it is safe in a state message, a log line and an event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Self

NOTHING_DONE = ("Nothing was created.", "Nothing was changed.")
"""The last sentences that a refusal can have."""


class KeyRotationError(Exception):
    """Base class of this project's errors; the text is safe to show and to store.

    Attributes:
        entry: The heading of its entry in `docs/how-to/troubleshooting.md`; each class has one of its own.
        retry_when: The words after "Retry is safe; press it once".
        causes: The errors that this one combines; empty for a single failure.
        block: The block whose service failed, as `<block type slug>/<name>`; empty if unknown.
    """

    entry: ClassVar[str] = "An unexpected error"
    retry_when: ClassVar[str] = "the cause is repaired"
    causes: tuple[KeyRotationError, ...] = ()
    block = ""

    def __str__(self) -> str:
        """Return the message, with the block that it concerns."""
        text = super().__str__()
        if not self.block or self.block in text:
            return text
        return f"{text.removesuffix('.')} (block {self.block})."

    @classmethod
    def combine(cls, causes: Sequence[KeyRotationError]) -> Self:
        """Return one error with the sentences of several failures, each once; "Nothing was ..." comes last."""
        texts = list(dict.fromkeys(map(str, causes)))
        closing = next((each for text in texts for each in NOTHING_DONE if text.endswith(each)), "")
        sentences = [text.removesuffix(closing).rstrip() for text in texts]
        error = cls(" ".join([*sentences, closing]).rstrip())
        error.causes = tuple(causes)
        return error


class ConfigurationError(KeyRotationError):
    """Invalid input; the message names the field, and nothing was created."""

    entry = "A setting is refused"
    retry_when = "the block is corrected; if a parameter is wrong, start a new run instead"


class MissingBlockError(ConfigurationError):
    """The block of a connection or a destination does not exist."""

    entry = "A block does not exist"
    retry_when = "the block exists"


class OtherRunError(KeyRotationError):
    """Another run of the same rotation took over, or did not end in time; this run stopped before its next write."""

    entry = "Another run was at work"
    retry_when = "the other run has ended"


class LedgerError(KeyRotationError):
    """The ledger cannot be read or written, or the next entry would not fit."""

    entry = "The ledger cannot be read or written"


class VerificationError(KeyRotationError):
    """The new key was not accepted in time, or its settings differ from the requested ones."""

    entry = "The new key is not as asked for"


class NotYetAcceptedError(VerificationError):
    """OpenRouter did not accept a new or restored key in time."""

    entry = "The new key does not work yet"
    retry_when = "OpenRouter accepts new keys"


class DestinationError(KeyRotationError):
    """A destination does not hold what was written to it, or holds what must not be overwritten."""

    entry = "A destination does not hold the key"
    retry_when = "the destination works"


class OverwrittenError(DestinationError):
    """A destination no longer holds the current key; a Retry would not publish, only a new run does."""

    entry = "A destination was overwritten"


class ServiceError(KeyRotationError):
    """A call to another service failed.

    Args:
        message: One sentence for the engineer on call.
        outcome_unknown: Whether the call may have taken effect. `False` only if the service or the network has
            confirmed that it did not.
        retryable: Whether the same call may succeed later.
        retry_after: The seconds that the service asked to wait, if any.
        status: The HTTP status of the response, if any.
    """

    entry = "Prefect or a secret block failed"
    retry_when = "the failed service works again"

    outcome_unknown = False
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        outcome_unknown: bool | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        if outcome_unknown is not None:
            self.outcome_unknown = outcome_unknown
        if retryable is not None:
            self.retryable = retryable
        self.retry_after = retry_after
        self.status = status


class UnreachableError(ServiceError):
    """No connection, a certificate that is not trusted, or no answer within the timeout."""

    entry = "A service cannot be reached"
    retry_when = "the service can be reached"

    outcome_unknown = True
    retryable = True


class UnauthorizedError(ServiceError):
    """The service does not accept the credential (401)."""

    entry = "A credential is refused"
    retry_when = "the block holds a valid credential"


class ForbiddenError(ServiceError):
    """The credential is valid, but lacks the permission (403)."""

    entry = "A permission is missing"
    retry_when = "the permission is granted"


class NotFoundError(ServiceError):
    """The requested object does not exist (404)."""

    entry = "Something does not exist"
    retry_when = "what is missing exists"


class ConflictError(ServiceError):
    """Someone else changed it first (409, or a check-and-set mismatch)."""

    entry = "Somebody else has written there"
    retry_when = "nobody else writes there"


class RejectedError(ServiceError):
    """The service rejected the request, and did nothing (400, 402, 422 and the like)."""

    entry = "A request is rejected"


class RateLimitedError(ServiceError):
    """The service asks to come back later, and did nothing (429; 412 of a Vault that lags behind; 425)."""

    entry = "A service asks to slow down"
    retry_when = "the service accepts calls again"

    retryable = True


class UnavailableError(ServiceError):
    """The service is unavailable (5xx, a sealed Vault), or a status leaves open what it did (408, 499 of a proxy)."""

    entry = "A service is unavailable"
    retry_when = "the service is available"

    outcome_unknown = True
    retryable = True


class OtherAccountError(ServiceError):
    """The connection's management key belongs to another account than the one in which the key was made."""

    entry = "The account of a key is out of reach"
    retry_when = "the connection has the management key of that account"


class UnexpectedAnswerError(ServiceError):
    """The response is not as documented: not JSON, too large, or with missing fields."""

    entry = "An answer is not as documented"
    retry_when = "the service answers as documented"

    outcome_unknown = True


@contextmanager
def concerning(block: str) -> Iterator[None]:
    """Name a block in each service error that the body raises, unless it names one already.

    Args:
        block: The block, as `<block type slug>/<name>`; empty if it is not stored.
    """
    try:
        yield
    except ServiceError as error:
        error.block = error.block or block
        raise


STATUS_ERRORS: dict[int, type[ServiceError]] = {
    **dict.fromkeys((400, 402, 405, 406, 410, 411, 413, 414, 415, 416, 417, 422, 428, 431, 451), RejectedError),
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    **dict.fromkeys((412, 425, 429), RateLimitedError),
}
"""The error for each HTTP status by which a service confirms that it did nothing.

Vault answers 412 until it has caught up with a write, and asks to be called again:
https://developer.hashicorp.com/vault/api-docs#http-status-codes
"""


def error_for_status(status: int) -> type[ServiceError]:
    """Return the error class for an HTTP status; one that confirms nothing leaves the outcome unknown."""
    if status in STATUS_ERRORS:
        return STATUS_ERRORS[status]
    return UnavailableError if status >= 400 else UnexpectedAnswerError  # noqa: PLR2004 - the hundreds are the meaning
