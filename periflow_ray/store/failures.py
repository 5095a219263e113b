"""The meaning of a failed storage operation: a plain reason for the user, and whether another try may help.

Each backend has its table of codes. The clients' own exception classes are known by name only, so that none of their
packages is needed here.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MAX_CHARACTERS = 300
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_ERRNOS = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR}
)


@dataclass(frozen=True)
class Answer:
    """A server's refusal: its error code and HTTP status, each None where it is not known, and its own words."""

    code: str | None = None
    status: int | None = None
    message: str | None = None


def _read_no_answer(cause: BaseException) -> Answer | None:
    return None


@dataclass(frozen=True)
class Failures:
    """Reads the failures of one kind of storage.

    Args:
        read_answer: the server's answer that an exception of the client holds; None where it holds none.
        no_container, wrong_keys, denied: codes for a bucket or container that does not exist, a credential that is not
            accepted, a right that it lacks.
        transient: codes of what may succeed when it is tried again, besides the usual HTTP statuses.
        already_there: codes for what should be created and exists, besides the status 412.
        past_the_end: codes for bytes that a key does not have.
        no_credential, no_connection, bad_settings: names of the client's exceptions when it finds no credential,
            reaches no server, or was given settings that no try can succeed with.
        no_credential_texts: words of exceptions of other names that mean the same as ``no_credential``.
    """

    read_answer: Callable[[BaseException], Answer | None] = _read_no_answer
    no_container: frozenset[str] = frozenset()
    wrong_keys: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()
    transient: frozenset[str] = frozenset()
    already_there: frozenset[str] = frozenset()
    past_the_end: frozenset[str] = frozenset()
    no_credential: frozenset[str] = frozenset()
    no_connection: frozenset[str] = frozenset()
    bad_settings: frozenset[str] = frozenset()
    no_credential_texts: frozenset[str] = frozenset()
    how_to_log_in: str = "make a credential: periflow-ray credential create NAME --type TYPE"

    def describe(self, err: BaseException) -> str:
        """The reason of a failure in one line, without addresses that may carry a signature."""
        answer = self._find_answer(err)
        code, status = answer.code, answer.status
        names = {type(cause).__name__ for cause in _chain(err)}
        if code in self.no_container:
            return "the bucket or container does not exist"
        if code in self.wrong_keys:
            return f"the credential is not accepted ({code})"
        if code in self.denied or status == 403:
            return f"access is denied ({code or status})"
        if self._has_no_credential(err):
            return f"no keys were found here; {self.how_to_log_in}"
        if code or status:
            message = str(err) if answer.message is None else answer.message
            return _one_line(f"the server answers {code or status}: {message}")
        if isinstance(err, OSError) and err.strerror and type(err).__module__ == "builtins":
            return f"{err.strerror}: '{err.filename}'" if err.filename else err.strerror
        if names & self.no_connection:
            host = re.search(r"\w+://[^/\s\"']+|(?<=host )\S+", str(err))
            place = host[0] if host else "the server"
            return f"no connection to {place}; is the address right, and does the server run?"
        if isinstance(err, TimeoutError) or any("Timeout" in name for name in names):
            return "no answer in time (PERIFLOW_STORAGE_TIMEOUT_S sets the limit for slow links)"
        return _one_line(f"{err}" or type(err).__name__)

    def is_transient(self, err: BaseException) -> bool:
        """Whether the same operation may succeed when it is tried again."""
        answer = self._find_answer(err)
        if answer.code is not None or answer.status is not None:
            return answer.code in self.transient or answer.status in _TRANSIENT_STATUSES
        if isinstance(
            err, (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
        ):
            return False
        if self._has_no_credential(err) or {type(cause).__name__ for cause in _chain(err)} & self.bad_settings:
            return False
        if isinstance(err, (TypeError, ValueError, AttributeError, NotImplementedError)):
            return False
        if isinstance(err, OSError) and type(err).__module__ == "builtins" and err.errno is not None:
            return isinstance(err, (ConnectionError, TimeoutError)) or err.errno in _TRANSIENT_ERRNOS
        # The rest are the clients' many errors of broken connections.
        return True

    def is_missing_container(self, err: BaseException) -> bool:
        """Whether it is not the key that is missing but the bucket or container."""
        return self._find_answer(err).code in self.no_container

    def is_already_there(self, err: BaseException) -> bool:
        """Whether something could not be created because it exists."""
        answer = self._find_answer(err)
        return isinstance(err, FileExistsError) or answer.code in self.already_there or answer.status == 412

    def is_past_the_end(self, err: BaseException) -> bool:
        """Whether bytes were asked for that the key does not have."""
        return self._find_answer(err).code in self.past_the_end

    def is_code(self, err: BaseException, code: str) -> bool:
        """Whether the server answered with this error code."""
        return self._find_answer(err).code == code

    def _find_answer(self, err: BaseException) -> Answer:
        for cause in _chain(err):
            answer = self.read_answer(cause)
            if answer is not None:
                return answer
        return Answer()

    def _has_no_credential(self, err: BaseException) -> bool:
        return any(
            type(cause).__name__ in self.no_credential or any(text in str(cause) for text in self.no_credential_texts)
            for cause in _chain(err)
        )


def _chain(err: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = err
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _one_line(text: str) -> str:
    line = " ".join(text.split())[:_MAX_CHARACTERS]
    return re.sub(r"(sig|Signature|AccountKey)=[^&;\s]+", r"\1=***", line)
