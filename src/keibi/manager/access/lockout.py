"""Counting failed sign-ins before the password is looked at.

Theory of operation. An attempt first takes its place in the count, in one UPDATE of its own transaction, and only then is the
password checked. So the n-th of many attempts at the same moment finds n-1 counted, whatever the order in which their
passwords are checked: more than MAX_FAILURES wrong ones never are. Success takes the count back to nothing.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from sqlalchemy import CursorResult, case, select, update

from keibi.errors import TryLaterError
from keibi.manager.access.tables import SignInRecord
from keibi.manager.database import Database, Scope

MAX_FAILURES = 10
LOCK_SECONDS = 15 * 60.0
MAX_UNKNOWN_NAMES = 10_000


class LockOut:
    """Decides whether a sign-in may be tried at all. Names that do not exist are counted too, so that they look alike."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._unknown: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, user_id: str) -> None:
        """Count an attempt for a user; it is a failure until `forgive` says otherwise.

        Raises:
            TryLaterError: the user is locked out, with the time until it opens.
        """
        now = self._clock()
        # A lock that has ended leaves one failure: this attempt.
        failures = case((SignInRecord.locked_until_at > 0, 1), else_=SignInRecord.failures + 1)
        statement = (
            update(SignInRecord)
            .where(SignInRecord.id == user_id, SignInRecord.locked_until_at <= now)
            .values(failures=failures, locked_until_at=case((failures >= MAX_FAILURES, now + LOCK_SECONDS), else_=0.0))
            .execution_options(synchronize_session=False)
        )
        with self._database.session(Scope.system("sign-in")) as session:
            result = session.execute(statement)
            assert isinstance(result, CursorResult)  # noqa: S101 - what an UPDATE gives
            is_locked = result.rowcount == 0
            until = session.scalar(select(SignInRecord.locked_until_at).where(SignInRecord.id == user_id)) or 0.0
        if is_locked:
            raise _locked(until - now)

    def count_unknown(self, name: str) -> None:
        """Count an attempt for a name that does not exist.

        Raises:
            TryLaterError: as a user of that name would be locked out.
        """
        now = self._clock()
        key = hashlib.sha256(name.casefold().encode()).digest()
        with self._lock:
            failures, until = self._unknown.pop(key, (0, 0.0))
            is_locked = until > now
            if not is_locked:
                failures = 1 if until else failures + 1
                until = now + LOCK_SECONDS if failures >= MAX_FAILURES else 0.0
            self._unknown[key] = (failures, until)
            while len(self._unknown) > MAX_UNKNOWN_NAMES:
                self._unknown.popitem(last=False)
        if is_locked:
            raise _locked(until - now)

    def forgive(self, user_id: str) -> None:
        """Take the count back: the sign-in succeeded, or an administrator unlocked the account."""
        with self._database.session(Scope.system("sign-in")) as session:
            session.execute(
                update(SignInRecord)
                .where(SignInRecord.id == user_id)
                .values(failures=0, locked_until_at=0.0)
                .execution_options(synchronize_session=False)
            )

    def uncount(self, user_id: str) -> None:
        """Take one attempt back, but no lock: the attempt guessed nothing."""
        with self._database.session(Scope.system("sign-in")) as session:
            session.execute(
                update(SignInRecord)
                .where(SignInRecord.id == user_id, SignInRecord.failures > 0)
                .values(
                    failures=SignInRecord.failures - 1,
                    locked_until_at=case((SignInRecord.failures - 1 < MAX_FAILURES, 0.0), else_=SignInRecord.locked_until_at),
                )
                .execution_options(synchronize_session=False)
            )


def _locked(seconds: float) -> TryLaterError:
    minutes = max(1, math.ceil(seconds / 60))
    return TryLaterError(
        "locked_out",
        f"this account is locked after {MAX_FAILURES} failed sign-ins; it opens again in {minutes} min",
        hint="wait, or ask an administrator to unlock it",
        retry_after_seconds=max(1.0, seconds),
    )
