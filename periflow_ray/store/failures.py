"""What a failed storage operation means: a plain reason for the user, and whether another try may help.

The clients' own exception classes are known by name only, so that none of their packages is needed here.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Any

_MAX_CHARACTERS = 300
_NO_CONTAINER = frozenset({"NoSuchBucket", "ContainerNotFound"})
_WRONG_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidToken"})
_DENIED = frozenset({"403", "AccessDenied", "AuthorizationFailure", "AuthorizationPermissionMismatch"})
_TRANSIENT_CODES = frozenset(
    {
        "BadDigest",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "InternalServerError",
        "OperationAborted",
        "OperationTimedOut",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "XAmzContentSHA256Mismatch",
    }
)
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_ERRNOS = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR}
)
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialUnavailableError"})
# DefaultAzureCredential has looked everywhere.
_NO_TOKEN = "failed to retrieve a token"
_NO_CONNECTION = frozenset({"EndpointConnectionError", "ClientConnectorError", "ClientConnectorDNSError"})
_BAD_SETTINGS = frozenset({"InvalidConfigError", "ProfileNotFound", "ParamValidationError", "InvalidEndpointError"})


def describe_failure(err: BaseException) -> str:
    """The reason of a failure in one line, without addresses that may carry a signature."""
    code, status = _code_of(err)
    names = {type(cause).__name__ for cause in _chain(err)}
    if code in _NO_CONTAINER:
        return "the bucket or container does not exist"
    if code in _WRONG_KEYS:
        return f"the credential is not accepted ({code})"
    if code in _DENIED or status == 403:
        return f"access is denied ({code or status})"
    if _has_no_credential(err):
        return "no credential was found in this environment; make one: periflow-ray credential create"
    if code or status:
        return _one_line(f"the server answers {code or status}: {_server_message(err)}")
    if isinstance(err, OSError) and err.strerror and type(err).__module__ == "builtins":
        return f"{err.strerror}: '{err.filename}'" if err.filename else err.strerror
    if names & _NO_CONNECTION:
        host = re.search(r"\w+://[^/\s\"']+|(?<=host )\S+", str(err))
        return f"no connection to {host[0] if host else 'the server'}; is the address right, and does the server run?"
    if isinstance(err, TimeoutError) or any("Timeout" in name for name in names):
        return "no answer in time (PERIFLOW_STORAGE_TIMEOUT_S sets the limit for slow links)"
    return _one_line(f"{err}" or type(err).__name__)


def is_transient(err: BaseException) -> bool:
    """Whether the same operation may succeed when it is tried again."""
    code, status = _code_of(err)
    if code is not None or status is not None:
        return code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES
    if isinstance(err, (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return False
    if _has_no_credential(err) or {type(cause).__name__ for cause in _chain(err)} & _BAD_SETTINGS:
        return False
    if isinstance(err, (TypeError, ValueError, AttributeError, NotImplementedError)):
        return False
    if isinstance(err, OSError) and type(err).__module__ == "builtins" and err.errno is not None:
        return isinstance(err, (ConnectionError, TimeoutError)) or err.errno in _TRANSIENT_ERRNOS
    # What is left are the clients' many errors of broken connections.
    return True


def is_missing_container(err: BaseException) -> bool:
    """Whether the bucket or container itself is not there (a missing key is something else)."""
    return _code_of(err)[0] in _NO_CONTAINER


def is_already_there(err: BaseException) -> bool:
    """Whether something could not be created because it exists."""
    code, status = _code_of(err)
    return isinstance(err, FileExistsError) or code in ("PreconditionFailed", "BlobAlreadyExists") or status == 412


def is_code(err: BaseException, code: str) -> bool:
    """Whether the server answered with this error code."""
    return _code_of(err)[0] == code


def _has_no_credential(err: BaseException) -> bool:
    return any(type(cause).__name__ in _NO_CREDENTIALS or _NO_TOKEN in str(cause) for cause in _chain(err))


def _chain(err: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = err
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _code_of(err: BaseException) -> tuple[str | None, int | None]:
    """The server's error code and HTTP status; None where no server has answered."""
    for cause in _chain(err):
        response: Any = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return str(response["Error"].get("Code")), status
        status = getattr(cause, "status_code", None)
        if isinstance(status, int):  # azure
            code: Any = getattr(cause, "error_code", None)
            return code and str(getattr(code, "value", code)), status
        status = getattr(cause, "code", None)
        if type(cause).__name__ == "HttpError" and isinstance(status, int):  # gcsfs
            return None, status
    return None, None


def _server_message(err: BaseException) -> str:
    for cause in _chain(err):
        response: Any = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Message", ""))
    return str(err)


def _one_line(text: str) -> str:
    line = " ".join(text.split())[:_MAX_CHARACTERS]
    return re.sub(r"(sig|Signature|AccountKey)=[^&;\s]+", r"\1=***", line)
