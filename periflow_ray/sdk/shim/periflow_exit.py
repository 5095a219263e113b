"""The code of the ``sys.exit()`` that ends this interpreter: at exit Python has dropped it, and a shell may hide it.

One that somebody catches does not count. Standard library only, for any Python that a command may use.
"""

import sys

# The code of the exit that nobody caught; None as long as there is none, and for 0.
ended_with = None
_CODE = SystemExit.__dict__["code"]


class _NotedExit(SystemExit):
    @property
    def code(self):  # type: ignore[no-untyped-def]
        value = _CODE.__get__(self)
        try:
            sys._getframe(1)
        except ValueError:
            # No Python code has asked, so it is the interpreter, which ends with it.
            global ended_with
            ended_with = value or None
        return value

    @code.setter
    def code(self, value):  # type: ignore[no-untyped-def]
        _CODE.__set__(self, value)

    def __reduce__(self):  # type: ignore[no-untyped-def]
        # As what it stands for, for another process.
        return SystemExit, self.args


_NotedExit.__name__ = _NotedExit.__qualname__ = "SystemExit"


def note_exits() -> None:
    """Replace ``sys.exit``, and what ``site`` offers for it, by ones that raise the same and are noted."""

    def leave(status=None):  # type: ignore[no-untyped-def]
        """Exit the interpreter by raising SystemExit(status)."""
        raise _NotedExit(status)

    leave.__name__ = leave.__qualname__ = "exit"
    sys.exit = leave
    quitter = getattr(sys.modules.get("_sitebuiltins"), "Quitter", None)
    if quitter is None:
        return
    call = quitter.__call__

    def leave_by_name(self, code=None):  # type: ignore[no-untyped-def]
        try:
            call(self, code)
        except SystemExit:
            leave(code)  # type: ignore[no-untyped-call]

    quitter.__call__ = leave_by_name
