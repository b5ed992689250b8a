"""Four families of error, by who must act.

A verdict ("this file changed") is a value, not an error. An error stops what was asked, and says what is wrong with the
value in it (`message`), where (`where`), what to do (`hint`), and which documented, stable `code` it has.
"""


class KeibiError(Exception):
    """Something that was asked for could not be done; the subclass says who must act."""

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.where:
            parts.append(f"in {self.where}")
        if self.hint:
            parts.append(f"({self.hint})")
        return " ".join(parts)


class InputError(KeibiError):
    """The input is wrong: whoever gave it must mend it; trying again unchanged will fail again."""


class AccessError(KeibiError):
    """The caller is unknown or lacks the right: somebody must sign in or grant it."""


class TryLaterError(KeibiError):
    """Nothing is wrong with the request: a resource is busy, full or away; the same call may work later."""

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "", retry_after_seconds: float = 5.0) -> None:
        super().__init__(code, message, where=where, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class RefusedError(KeibiError):
    """Refused and to be reported: a bad signature, a broken chain, bytes that try to harm the reader."""
