"""Passwords, lock-out, sessions and one-time codes."""

import threading

import pyotp
import pytest
from sqlalchemy import func, select

from keibi.errors import InputError, RefusedError, TryLaterError
from keibi.manager.access.lockout import LOCK_SECONDS, MAX_FAILURES
from keibi.manager.access.model import NotSignedInError
from keibi.manager.access.passwords import Passwords, check_password_rules, generate_password
from keibi.manager.access.tables import SessionRecord, SignInRecord, UserRecord
from keibi.manager.database import Scope
from tests.unit.manager.making import PASSWORD, QUICK


def refused(world, name="alice", password="wrong password!", totp=""):
    with pytest.raises((NotSignedInError, TryLaterError)) as caught:
        world.access.sign_in(name, password, totp)
    return caught.value


@pytest.fixture
def alice(world):
    return world.person(world.home, "alice", "operator")


def test_the_first_start_makes_one_administrator_who_can_sign_in(world):
    assert world.access.first_start(world.tenants) is None
    provider = world.provider
    assert provider.may("tenants.manage", tenant_id=None)
    assert provider.tenant_ids == {world.home}


def test_a_hundred_parallel_wrong_sign_ins_lock_the_account(world, alice):
    outcomes = []
    barrier = threading.Barrier(20)

    def attack():
        barrier.wait()
        for _ in range(5):
            try:
                world.access.sign_in("alice", "a wrong password")
            except (NotSignedInError, TryLaterError) as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=attack) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 100
    # Exactly so many got to the password: the count is taken before it is checked.
    assert outcomes.count("credentials_wrong") == MAX_FAILURES
    assert outcomes.count("locked_out") == 100 - MAX_FAILURES

    error = refused(world, password=PASSWORD)
    assert error.code == "locked_out"
    assert "opens again in 15 min" in error.message
    assert 0 < error.retry_after_seconds <= LOCK_SECONDS

    world.clock.now += LOCK_SECONDS - 60
    assert "opens again in 1 min" in refused(world, password=PASSWORD).message
    world.clock.now += 61
    assert world.sign_in("alice").name == "alice"


def test_a_right_password_takes_the_count_back(world, alice):
    for _ in range(3):
        for _ in range(MAX_FAILURES - 1):
            assert refused(world).code == "credentials_wrong"
        world.sign_in("alice")
    assert world.count(select(SignInRecord.failures).where(SignInRecord.id == alice.user_id)) == 0


def test_after_a_lock_has_ended_the_count_begins_anew(world, alice):
    for _ in range(MAX_FAILURES + 1):
        refused(world)
    world.clock.now += LOCK_SECONDS + 1
    for _ in range(MAX_FAILURES - 1):
        assert refused(world).code == "credentials_wrong"
    world.sign_in("alice")


def test_names_that_do_not_exist_look_like_those_that_do(world, alice):
    known = [refused(world, "alice").code for _ in range(MAX_FAILURES + 2)]
    unknown = [refused(world, "nobody").code for _ in range(MAX_FAILURES + 2)]
    assert known == unknown
    assert known[-1] == "locked_out"


def test_an_administrator_can_unlock(world, alice):
    for _ in range(MAX_FAILURES + 1):
        refused(world)
    assert world.access.users.get(world.provider, alice.user_id).locked_until_at is not None
    world.access.unlock(world.provider, alice.user_id)
    world.sign_in("alice")


def test_sessions_end_by_idleness_by_age_and_by_signing_out(world, alice):
    signed_in = world.access.sign_in("alice", PASSWORD)
    world.clock.now += 3599
    assert world.access.authenticate_session(signed_in.cookie).name == "alice"
    world.clock.now += 3599
    assert world.access.authenticate_session(signed_in.cookie).name == "alice"
    world.clock.now += 3601
    with pytest.raises(NotSignedInError, match="session has ended"):
        world.access.authenticate_session(signed_in.cookie)

    signed_in = world.access.sign_in("alice", PASSWORD)
    for _ in range(9):
        world.clock.now += 3200
        try:
            world.access.authenticate_session(signed_in.cookie)
        except NotSignedInError:
            break
    else:
        pytest.fail("a session in use must end after eight hours too")
    assert world.clock.now >= signed_in.expires_at

    signed_in = world.access.sign_in("alice", PASSWORD)
    world.access.sign_out(signed_in.cookie)
    with pytest.raises(NotSignedInError, match="not signed in"):
        world.access.authenticate_session(signed_in.cookie)


def test_the_database_holds_no_cookie_that_could_be_used(world, alice):
    signed_in = world.access.sign_in("alice", PASSWORD)
    with world.database.session(Scope.system("test"), writes=False) as session:
        stored = session.scalars(select(SessionRecord.id)).all()
        passwords = session.scalars(select(UserRecord.password_hash)).all()
    assert signed_in.cookie not in stored
    for value in stored:
        with pytest.raises(NotSignedInError):
            world.access.authenticate_session(value)
    assert all(value.startswith("$argon2id$") for value in passwords)


def test_what_changes_something_needs_the_sessions_own_token(world, alice):
    first = world.access.sign_in("alice", PASSWORD)
    second = world.access.sign_in("alice", PASSWORD)
    assert world.access.authenticate_session(first.cookie, first.csrf_token).name == "alice"
    for token in ("", "x", second.csrf_token, first.cookie):
        with pytest.raises(RefusedError) as caught:
            world.access.authenticate_session(first.cookie, token)
        assert caught.value.code == "csrf_token"


@pytest.mark.parametrize("cookie", ["", "x", "a" * 43, "a" * 5000, "\x00" * 43, "日本語" * 10])
def test_junk_cookies_are_nobody(world, cookie):
    with pytest.raises(NotSignedInError):
        world.access.authenticate_session(cookie)


def test_disabling_a_user_ends_their_sessions_at_once(world, alice):
    signed_in = world.access.sign_in("alice", PASSWORD)
    world.access.users.change(world.provider, alice.user_id, is_enabled=False)
    with pytest.raises(NotSignedInError):
        world.access.authenticate_session(signed_in.cookie)
    assert refused(world, password=PASSWORD).code == "account_disabled"


def test_disabling_a_customer_refuses_its_people(world):
    tenant = world.tenant("Acme")
    world.person(tenant, "anna", "administrator")
    signed_in = world.access.sign_in("anna", PASSWORD)
    world.tenants.set_enabled(world.provider, tenant, False)
    with pytest.raises(NotSignedInError):
        world.access.authenticate_session(signed_in.cookie)
    assert refused(world, "anna", PASSWORD).code == "account_disabled"


def test_changing_the_password_ends_other_sessions_and_needs_the_old_one(world, alice):
    other = world.access.sign_in("alice", PASSWORD)
    own = world.access.sign_in("alice", PASSWORD)
    with pytest.raises(InputError, match="not right"):
        world.access.users.change_own_password(own.principal, "wrong", "quite another pass phrase")
    world.access.users.change_own_password(own.principal, PASSWORD, "quite another pass phrase")
    assert world.access.authenticate_session(own.cookie).name == "alice"
    with pytest.raises(NotSignedInError):
        world.access.authenticate_session(other.cookie)
    assert refused(world, password=PASSWORD).code == "credentials_wrong"
    world.sign_in("alice", "quite another pass phrase")


def test_a_password_typed_in_another_unicode_form_is_the_same(world):
    provider = world.provider
    world.access.users.create(provider, "bob", "Ａpfelmuß café ﬁne", must_change_password=False)
    assert world.sign_in("bob", "Apfelmuß café fine").name == "bob"


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("short", "5 characters"),
        ("x" * 300, "more than 256"),
        ("aaaaaaaaaaaabbb", "repeats"),
        ("Alice in wonderland", "user's name"),
        ("password1234", "well-known"),
        ("Qwertyuiop12", "well-known"),
    ],
)
def test_weak_passwords_are_refused_with_the_reason(password, reason):
    with pytest.raises(InputError, match=reason):
        check_password_rules(password, user_name="alice")


def test_generated_passwords_pass_the_rules_and_differ():
    made = {generate_password() for _ in range(50)}
    assert len(made) == 50
    for password in made:
        check_password_rules(password, user_name="admin")


def test_hashes_of_older_parameters_are_renewed_when_somebody_signs_in(world, alice):
    old = Passwords(QUICK.__class__(memory_kib=128, passes=1)).hash(PASSWORD)
    with world.database.session(Scope.system("test")) as session:
        session.get(UserRecord, alice.user_id).password_hash = old
    world.sign_in("alice")
    with world.database.session(Scope.system("test"), writes=False) as session:
        assert "m=64," in session.get(UserRecord, alice.user_id).password_hash


def test_at_most_two_hashes_are_made_at_once(monkeypatch):
    from keibi.manager.access import passwords as module

    monkeypatch.setattr(module, "MAX_WAIT_SECONDS", 0.05)
    made = Passwords(QUICK)
    slots = made._slots
    assert slots.acquire(blocking=False)
    assert slots.acquire(blocking=False)
    with pytest.raises(TryLaterError, match="too many sign-ins"):
        made.hash(PASSWORD)
    slots.release()
    made.hash(PASSWORD)


class TestOneTimeCodes:
    @pytest.fixture
    def totp(self, world, alice):
        enrolment = world.access.second_factor.enrol(alice)
        self.app = pyotp.TOTP(enrolment.secret)
        assert enrolment.uri.startswith("otpauth://totp/Keibi:alice?")
        with pytest.raises(InputError, match="not right"):
            world.access.second_factor.confirm(alice, "000000" if self.code(world) != "000000" else "111111")
        self.recovery = world.access.second_factor.confirm(alice, self.code(world))
        return self

    def code(self, world, seconds=0.0):
        return self.app.at(int(world.clock.now + seconds))

    def test_a_code_is_needed_and_counts_once(self, world, totp):
        assert refused(world, password=PASSWORD).code == "totp_required"
        assert refused(world, password=PASSWORD, totp=self.code(world)).code == "totp_used"
        world.clock.now += 30
        world.access.sign_in("alice", PASSWORD, self.code(world))
        assert refused(world, password=PASSWORD, totp=self.code(world)).code == "totp_used"
        # Nor does an older one count after a newer.
        assert refused(world, password=PASSWORD, totp=self.code(world, -30)).code == "totp_used"

    def test_clocks_may_differ_by_half_a_minute(self, world, totp):
        world.clock.now += 300
        world.access.sign_in("alice", PASSWORD, self.code(world, -30))
        world.access.sign_in("alice", PASSWORD, self.code(world, 30))
        world.clock.now += 300
        assert refused(world, password=PASSWORD, totp=self.code(world, -90)).code == "totp_wrong"

    def test_wrong_codes_lock_the_account_but_asking_for_one_does_not(self, world, totp):
        for _ in range(3 * MAX_FAILURES):
            assert refused(world, password=PASSWORD).code == "totp_required"
        wrong = "000000" if self.code(world) != "000000" else "111111"
        codes = [refused(world, password=PASSWORD, totp=wrong).code for _ in range(MAX_FAILURES + 1)]
        assert codes == ["totp_wrong"] * MAX_FAILURES + ["locked_out"]

    def test_of_two_at_once_with_the_same_code_one_gets_in(self, world, totp):
        world.clock.now += 60
        outcomes = []
        barrier = threading.Barrier(4)

        def attempt():
            barrier.wait()
            try:
                world.access.sign_in("alice", PASSWORD, self.code(world))
                outcomes.append("in")
            except NotSignedInError as error:
                outcomes.append(error.code)

        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["in", "totp_used", "totp_used", "totp_used"]

    def test_each_recovery_code_works_once(self, world, totp):
        assert len(set(self.recovery)) == 10
        world.access.sign_in("alice", PASSWORD, self.recovery[0].upper())
        assert refused(world, password=PASSWORD, totp=self.recovery[0]).code == "totp_wrong"
        world.access.sign_in("alice", PASSWORD, self.recovery[1])

    def test_the_secret_is_encrypted_in_the_database(self, world, totp, alice):
        with world.database.session(Scope.system("test"), writes=False) as session:
            stored = session.get(SignInRecord, alice.user_id).totp_secret
        assert self.app.secret.encode() not in stored

    def test_turning_it_off_asks_for_the_password(self, world, totp, alice):
        with pytest.raises(InputError, match="not right"):
            world.access.second_factor.turn_off(alice, "wrong")
        world.access.second_factor.turn_off(alice, PASSWORD)
        world.sign_in("alice")

    def test_an_administrator_can_help_who_lost_their_phone(self, world, totp, alice):
        world.access.users.clear_totp(world.provider, alice.user_id)
        world.sign_in("alice")


def test_signing_in_is_in_the_audit_trail(world, alice):
    refused(world)
    actions = [entry.action for entry in world.audit.list(world.provider).items]
    assert "user.sign_in_failed" in actions
    assert "user.sign_in" in actions
    assert world.count(select(func.count()).select_from(UserRecord)) == 2
