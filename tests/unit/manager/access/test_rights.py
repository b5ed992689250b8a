"""Roles, grants, API keys, and the rule that nobody gives more than they have."""

import pytest

from keibi.errors import AccessError, InputError
from keibi.manager.access.model import ALL_PERMISSIONS, BUILT_IN_ROLES, GrantedRole, NotSignedInError, Permission, Principal
from tests.unit.manager.making import PASSWORD


def principal(*grants, tenants=("a", "b"), current=None):
    return Principal("u", "u", "session", frozenset(tenants), tuple(grants), current)


SOME = frozenset({"computers.view"})


@pytest.mark.parametrize(
    ("grant", "tenant_id", "group_id", "expected"),
    [
        (GrantedRole(SOME), "a", None, True),
        (GrantedRole(SOME), "a", "g", True),
        (GrantedRole(SOME), None, None, True),
        (GrantedRole(SOME), "c", None, False),
        (GrantedRole(SOME, "a"), "a", None, True),
        (GrantedRole(SOME, "a"), "a", "g", True),
        (GrantedRole(SOME, "a"), "b", None, False),
        (GrantedRole(SOME, "a"), None, None, False),
        (GrantedRole(SOME, "a", frozenset({"g"})), "a", "g", True),
        (GrantedRole(SOME, "a", frozenset({"g"})), "a", "h", False),
        (GrantedRole(SOME, "a", frozenset({"g"})), "a", None, False),
        (GrantedRole(frozenset({"events.view"})), "a", None, False),
    ],
)
def test_a_grant_counts_where_it_was_given(grant, tenant_id, group_id, expected):
    assert principal(grant).may("computers.view", tenant_id=tenant_id, group_id=group_id) is expected


def test_the_chosen_tenant_narrows_everything():
    both = principal(GrantedRole(SOME, "a"), GrantedRole(SOME, "b"), current="a")
    assert both.scope().tenant_ids == {"a"}
    assert both.tenants_where("computers.view") == {"a"}
    assert both.home_tenant_id == "a"
    other = principal(GrantedRole(SOME, "b"), current="a")
    assert not other.may_somewhere("computers.view")
    with pytest.raises(InputError, match="choose a customer"):
        _ = principal(GrantedRole(SOME)).home_tenant_id
    with pytest.raises(AccessError):
        principal(GrantedRole(SOME, "a")).in_tenant("c")


def test_built_in_roles_hold_what_their_names_say():
    assert set(BUILT_IN_ROLES) == {"provider", "administrator", "operator", "auditor"}
    assert BUILT_IN_ROLES["provider"].permissions == ALL_PERMISSIONS == {str(permission) for permission in Permission}
    assert "tenants.manage" not in BUILT_IN_ROLES["administrator"].permissions
    assert not {"users.manage", "roles.manage", "api_keys.manage"} & BUILT_IN_ROLES["operator"].permissions
    assert all(name.endswith(".view") for name in BUILT_IN_ROLES["auditor"].permissions)


@pytest.fixture
def acme(world):
    return world.tenant("Acme")


@pytest.fixture
def admin(world, acme):
    return world.person(acme, "anna", "administrator")


@pytest.fixture
def clerk(world, acme):
    """Manages users, and has little else."""
    role = world.access.roles.create(world.provider.in_tenant(acme), "Clerk", ["users.view", "users.manage", "computers.view"])
    return world.person(acme, "carl", role.role_id)


def test_nobody_gives_more_than_they_have(world, acme, admin, clerk):
    dora = world.access.users.create(clerk, "dora", PASSWORD)
    for role in ("administrator", "operator", "auditor", "provider"):
        with pytest.raises(AccessError) as caught:
            world.access.users.give(clerk, dora.user_id, role, tenant_id=acme)
        assert caught.value.code == "more_than_own"
    with pytest.raises(AccessError):  # all tenants are more than one
        world.access.users.give(admin, dora.user_id, "administrator", tenant_id=None)
    with pytest.raises(AccessError):  # somebody else's tenant
        world.access.users.give(admin, dora.user_id, "administrator", tenant_id=world.home)
    given = world.access.users.give(admin, dora.user_id, "administrator", tenant_id=acme)
    assert [grant.role_id for grant in given.grants] == ["administrator"]


def test_nobody_controls_an_account_that_has_more_than_they_have(world, admin, clerk):
    anna = world.access.users.get(clerk, admin.user_id)
    for attempt in (
        lambda: world.access.users.reset_password(clerk, anna.user_id, "a new long password"),
        lambda: world.access.users.change(clerk, anna.user_id, is_enabled=False),
        lambda: world.access.users.clear_totp(clerk, anna.user_id),
        lambda: world.access.unlock(clerk, anna.user_id),
        lambda: world.access.users.take_back(clerk, anna.user_id, anna.grants[0].grant_id),
    ):
        with pytest.raises(AccessError, match="you lack"):
            attempt()


def test_nobody_makes_or_widens_a_role_beyond_what_they_have(world, acme, admin):
    maker_role = world.access.roles.create(admin, "Maker", ["roles.manage", "users.view"])
    maker = world.person(acme, "mika", maker_role.role_id)
    with pytest.raises(AccessError, match="you lack"):
        world.access.roles.create(maker, "Own", ["commands.run"])
    with pytest.raises(AccessError, match="you lack"):
        world.access.roles.change(maker, maker_role.role_id, permissions=["roles.manage", "commands.run"])
    world.access.roles.create(maker, "Small", ["users.view"])


def test_a_changed_role_counts_at_once(world, acme, admin):
    role = world.access.roles.create(admin, "Viewer", ["computers.view"])
    world.person(acme, "vera", role.role_id)
    signed_in = world.access.sign_in("vera", PASSWORD)
    world.access.roles.change(admin, role.role_id, permissions=["events.view"])
    vera = world.access.authenticate_session(signed_in.cookie)
    assert vera.may("events.view", tenant_id=acme)
    assert not vera.may("computers.view", tenant_id=acme)


def test_a_role_in_use_and_a_built_in_one_cannot_be_removed(world, acme, admin, clerk):
    role = next(role for role in world.access.roles.list(admin) if role.name == "Clerk")
    with pytest.raises(InputError, match="given 1 times"):
        world.access.roles.remove(admin, role.role_id)
    with pytest.raises(InputError, match="built in"):
        world.access.roles.remove(admin, "auditor")


def test_roles_and_users_of_another_tenant_do_not_exist(world, acme, admin):
    other = world.tenant("Other")
    bob = world.person(other, "bob", "administrator")
    role = world.access.roles.create(bob, "Theirs", ["computers.view"])
    for attempt in (
        lambda: world.access.users.get(admin, bob.user_id),
        lambda: world.access.users.change(admin, bob.user_id, full_name="x"),
        lambda: world.access.users.give(admin, bob.user_id, "auditor", tenant_id=acme),
        lambda: world.access.users.give(admin, admin.user_id, role.role_id, tenant_id=acme),
        lambda: world.access.roles.get(admin, role.role_id),
        lambda: world.access.roles.change(admin, role.role_id, name="x"),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.code.endswith("_not_found")
    assert {user.name for user in world.access.users.list(admin).items} == {"anna"}


def test_a_right_over_a_group_reaches_the_groups_below_and_no_others(world, acme, admin):
    top = world.computers.groups.create(admin, "Tokyo")
    below = world.computers.groups.create(admin, "Web", top.group_id)
    beside = world.computers.groups.create(admin, "Osaka")
    gina = world.person(acme, "gina", "operator", group_id=top.group_id)
    assert gina.may("computers.manage", tenant_id=acme, group_id=below.group_id)
    assert not gina.may("computers.manage", tenant_id=acme, group_id=beside.group_id)
    assert not gina.may("computers.manage", tenant_id=acme)
    assert [group.name for group in world.computers.groups.tree(gina)] == ["Tokyo", "Web"]
    with pytest.raises(AccessError):
        world.computers.groups.create(gina, "Everywhere")
    world.computers.groups.create(gina, "App", below.group_id)


def test_the_last_provider_stays(world):
    provider = world.provider
    user = world.access.users.get(provider, provider.user_id)
    with pytest.raises(InputError, match="last provider"):
        world.access.users.take_back(provider, user.user_id, user.grants[0].grant_id)
    with pytest.raises(InputError, match="disable yourself"):
        world.access.users.change(provider, user.user_id, is_enabled=False)


def test_the_second_of_two_who_edit_a_user_is_told(world, admin):
    before = world.access.users.get(world.provider, admin.user_id)
    world.access.users.change(world.provider, admin.user_id, full_name="One", expected_version=before.version)
    with pytest.raises(InputError) as caught:
        world.access.users.change(world.provider, admin.user_id, full_name="Two", expected_version=before.version)
    assert caught.value.code == "changed_meanwhile"


class TestApiKeys:
    def test_a_key_is_a_principal_like_a_session(self, world, acme, admin):
        made = world.access.api_keys.create(admin, "deploy", "operator")
        key = world.access.authenticate_api_key(made.secret)
        assert made.secret.startswith(f"kb_{made.key.prefix}_")
        assert (key.kind, key.name, key.tenant_ids, key.home_tenant_id) == ("api_key", "deploy", {acme}, acme)
        assert key.may("commands.run", tenant_id=acme)
        assert not key.may("users.manage", tenant_id=acme)
        assert key.scope().tenant_ids == {acme}

    def test_only_its_hash_is_kept(self, world, admin):
        made = world.access.api_keys.create(admin, "deploy", "operator")
        assert made.secret not in repr(world.access.api_keys.list(admin))

    def test_a_key_has_no_more_than_its_owner_has_left(self, world, acme, admin):
        made = world.access.api_keys.create(admin, "deploy", "administrator")
        user = world.access.users.get(world.provider, admin.user_id)
        world.access.users.give(world.provider, user.user_id, "auditor", tenant_id=acme)
        world.access.users.take_back(world.provider, user.user_id, user.grants[0].grant_id)
        key = world.access.authenticate_api_key(made.secret)
        assert key.may("computers.view", tenant_id=acme)
        assert not key.may("computers.manage", tenant_id=acme)
        world.access.users.change(world.provider, user.user_id, is_enabled=False)
        with pytest.raises(NotSignedInError, match="owner"):
            world.access.authenticate_api_key(made.secret)

    def test_revoked_expired_and_unknown_keys_are_refused(self, world, admin):
        made = world.access.api_keys.create(admin, "one", "auditor")
        world.access.api_keys.revoke(admin, made.key.key_id)
        with pytest.raises(NotSignedInError, match="revoked"):
            world.access.authenticate_api_key(made.secret)
        made = world.access.api_keys.create(admin, "two", "auditor", expires_at=world.clock.now + 60)
        world.access.authenticate_api_key(made.secret)
        world.clock.now += 61
        with pytest.raises(NotSignedInError, match="expired"):
            world.access.authenticate_api_key(made.secret)
        for junk in ("", "kb_", "kb_x_y", made.secret[:-1] + "?", "x" * 100, "kb_" + "日" * 52):
            with pytest.raises(NotSignedInError, match="not known"):
                world.access.authenticate_api_key(junk)

    def test_nobody_makes_a_key_that_has_more_than_they_have(self, world, acme, admin):
        role = world.access.roles.create(admin, "Keymaker", ["api_keys.manage", "computers.view"])
        kim = world.person(acme, "kim", role.role_id)
        with pytest.raises(AccessError, match="you lack"):
            world.access.api_keys.create(kim, "big", "operator")
        with pytest.raises(AccessError):
            world.access.api_keys.create(kim, "elsewhere", role.role_id, tenant_id=world.home)
        made = world.access.api_keys.create(kim, "small", role.role_id)
        with pytest.raises(AccessError, match="cannot make API keys"):
            world.access.api_keys.create(world.access.authenticate_api_key(made.secret), "child", role.role_id)
