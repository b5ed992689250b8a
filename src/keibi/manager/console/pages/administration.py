"""Users, roles, API keys, customers and the audit trail."""

from collections.abc import Callable

from starlette.responses import Response

from keibi.errors import AccessError
from keibi.manager.access.model import ALL_PERMISSIONS, BUILT_IN_ROLES, Permission
from keibi.manager.audit.model import AuditFilter
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.labels import label
from keibi.manager.console.language import N_
from keibi.manager.console.visit import Visit

DAY_SECONDS = 86400
LIFETIMES = {"30": N_("30 days"), "90": N_("90 days"), "365": N_("1 year"), "1095": N_("3 years"), "": N_("never")}
TRAIL_LIMIT = 50


def start(visit: Visit) -> Response:
    """Go to the first part of the administration that the visitor may see."""
    entries = visit.administration
    if not entries:
        raise AccessError("not_allowed", visit._("Nothing here is yours to see."), hint=visit._("Ask an administrator."))
    return visit.go(entries[0].address)


def users(visit: Visit) -> Response:
    """List users."""
    page = visit.services.access.users.list(visit.principal, visit.query.get("cursor"), text=visit.query.get("text", ""))
    return visit.page(
        "users.html",
        title=visit._("Users"),
        page=page,
        roles=_roles(visit),
        role_word=role_word(visit),
        now=visit.view.now(),
    )


def create_user(visit: Visit) -> Response:
    """Make a user and give them their first role."""
    service = visit.services.access.users
    user = service.create(
        visit.principal,
        visit.field("name"),
        visit.raw_field("password"),
        full_name=visit.field("full_name"),
        email=visit.field("email"),
        language=visit.language,
    )
    if visit.field("role"):
        service.give(visit.principal, user.user_id, visit.field("role"), tenant_id=user.tenant_id)
    return visit.go(f"/administration/users/{user.user_id}", visit._("The user is made."))


def user(visit: Visit) -> Response:
    """Show one user."""
    found = visit.services.access.users.get(visit.principal, visit.path("user_id"))
    return visit.page(
        "user.html",
        title=found.name,
        user=found,
        roles=_roles(visit),
        places=_places(visit),
        role_word=role_word(visit),
        now=visit.view.now(),
    )


def user_state(visit: Visit) -> Response:
    """Enable or disable a user."""
    visit.services.access.users.change(visit.principal, visit.path("user_id"), is_enabled=visit.field("enabled") == "yes")
    return _back_to_user(visit)


def user_password(visit: Visit) -> Response:
    """Give a user another password."""
    visit.services.access.users.reset_password(visit.principal, visit.path("user_id"), visit.raw_field("password"))
    return _back_to_user(visit)


def unlock_user(visit: Visit) -> Response:
    """Let a locked-out user try again."""
    visit.services.access.unlock(visit.principal, visit.path("user_id"))
    return _back_to_user(visit)


def user_two_step_off(visit: Visit) -> Response:
    """Turn two-step sign-in off for somebody who lost their telephone."""
    visit.services.access.users.clear_totp(visit.principal, visit.path("user_id"))
    return _back_to_user(visit)


def give_role(visit: Visit) -> Response:
    """Give a role for a customer, a group, or everywhere."""
    kind, _, id_ = visit.field("where").partition(":")
    visit.services.access.users.give(
        visit.principal,
        visit.path("user_id"),
        visit.field("role"),
        tenant_id=id_ if kind == "tenant" else None,
        group_id=id_ if kind == "group" else None,
    )
    return _back_to_user(visit)


def take_back_role(visit: Visit) -> Response:
    """Take a role back."""
    visit.services.access.users.take_back(visit.principal, visit.path("user_id"), visit.field("grant"))
    return _back_to_user(visit)


def roles(visit: Visit) -> Response:
    """Show roles and their permissions as a table."""
    return visit.page(
        "roles.html",
        title=visit._("Roles"),
        roles=visit.services.access.roles.list(visit.principal),
        permissions=[permission.value for permission in Permission],
        role_word=role_word(visit),
    )


def create_role(visit: Visit) -> Response:
    """Make a role."""
    chosen = [permission for permission in visit.fields("permission") if permission in ALL_PERMISSIONS]
    visit.services.access.roles.create(visit.principal, visit.field("name"), chosen, visit.field("description"))
    return visit.go("/administration/roles", visit._("The role is made."))


def remove_role(visit: Visit) -> Response:
    """Remove a role that nobody has."""
    visit.services.access.roles.remove(visit.principal, visit.path("role_id"))
    return visit.go("/administration/roles", visit._("The role is removed."))


def api_keys(visit: Visit) -> Response:
    """List API keys."""
    return _api_keys_page(visit)


def create_api_key(visit: Visit) -> Response:
    """Make an API key and show it this once."""
    days = visit.number_field("days", 0)
    new = visit.services.access.api_keys.create(
        visit.principal,
        visit.field("name"),
        visit.field("role"),
        expires_at=visit.view.now() + days * DAY_SECONDS if days else None,
    )
    return _api_keys_page(visit, new.secret, new.key.name)


def revoke_api_key(visit: Visit) -> Response:
    """Make a key worthless."""
    visit.services.access.api_keys.revoke(visit.principal, visit.path("key_id"))
    return visit.go("/administration/api-keys", visit._("The key is revoked."))


def customers(visit: Visit) -> Response:
    """List the customers."""
    tenants = visit.services.tenants.list(visit.principal)
    return visit.page("customers.html", title=visit._("Customers"), tenants=tenants)


def create_customer(visit: Visit) -> Response:
    """Make a customer."""
    visit.services.tenants.create(visit.principal, visit.field("name"))
    return visit.go("/administration/customers", visit._("The customer is made."))


def rename_customer(visit: Visit) -> Response:
    """Give a customer another name."""
    visit.services.tenants.rename(
        visit.principal, visit.path("tenant_id"), visit.field("name"), visit.number_field("version", 0) or None
    )
    return visit.go("/administration/customers", visit._("Saved."))


def customer_state(visit: Visit) -> Response:
    """Enable or disable a customer."""
    visit.services.tenants.set_enabled(visit.principal, visit.path("tenant_id"), visit.field("enabled") == "yes")
    return visit.go("/administration/customers", visit._("Saved."))


def audit(visit: Visit) -> Response:
    """Show the audit trail, newest first."""
    filters = AuditFilter(action=visit.query.get("action", "").strip(), text=visit.query.get("text", "").strip())
    page = visit.services.audit.list(visit.principal, filters, visit.query.get("cursor"), TRAIL_LIMIT)
    tenants = visit.services.tenants.list(visit.principal)
    chosen = visit.principal.current_tenant_id
    verifiable = [
        tenant for tenant in tenants if visit.may("audit.view", tenant.tenant_id) and chosen in (None, tenant.tenant_id)
    ]
    return visit.page("audit.html", title=visit._("Audit trail"), page=page, filters=filters, verifiable=verifiable[:3])


def verify_audit(visit: Visit) -> Response:
    """Check the chain of a customer's trail."""
    verification = visit.services.audit.verify(visit.principal, visit.field("tenant"))
    return visit.fragment("audit_verified.html", verification=verification)


def role_word(visit: Visit) -> Callable[[str, str], str]:
    """Return the function that names a role: built-in ones in the reader's language."""
    return lambda role_id, name: label(visit.catalogue, "role", role_id) if role_id in BUILT_IN_ROLES else name


def _roles(visit: Visit) -> list[tuple[str, str]]:
    word = role_word(visit)
    return [(role.role_id, word(role.role_id, role.name)) for role in visit.services.access.roles.list(visit.principal)]


def _places(visit: Visit) -> list[tuple[str, str]]:
    places = [(f"tenant:{tenant.tenant_id}", tenant.name) for tenant in visit.services.tenants.list(visit.principal)]
    if visit.principal.may("users.manage", tenant_id=None):
        places.insert(0, ("", visit._("for all customers")))
    if visit.may("computers.view"):
        places += [(f"group:{group.group_id}", group.path) for group in visit.services.computers.groups.tree(visit.principal)]
    return places


def _api_keys_page(visit: Visit, secret: str = "", secret_name: str = "") -> Response:
    return visit.page(
        "api_keys.html",
        title=visit._("API keys"),
        keys=visit.services.access.api_keys.list(visit.principal),
        secret=secret,
        secret_name=secret_name,
        roles=_roles(visit),
        days=[(days, visit._(word)) for days, word in LIFETIMES.items()],
        role_word=role_word(visit),
    )


def _back_to_user(visit: Visit) -> Response:
    return visit.go(f"/administration/users/{visit.path('user_id')}", visit._("Saved."))


PAGES: tuple[Page, ...] = (
    get("/administration", start),
    get("/administration/users", users, "users.view"),
    post("/administration/users", create_user, "users.manage"),
    get("/administration/users/{user_id}", user, "users.view"),
    post("/administration/users/{user_id}/state", user_state, "users.manage"),
    post("/administration/users/{user_id}/password", user_password, "users.manage"),
    post("/administration/users/{user_id}/unlock", unlock_user, "users.manage"),
    post("/administration/users/{user_id}/two-step-off", user_two_step_off, "users.manage"),
    post("/administration/users/{user_id}/give", give_role, "users.manage"),
    post("/administration/users/{user_id}/take-back", take_back_role, "users.manage"),
    get("/administration/roles", roles, "users.view"),
    post("/administration/roles", create_role, "roles.manage"),
    post("/administration/roles/{role_id}/remove", remove_role, "roles.manage"),
    get("/administration/api-keys", api_keys, "api_keys.manage"),
    post("/administration/api-keys", create_api_key, "api_keys.manage"),
    post("/administration/api-keys/{key_id}/revoke", revoke_api_key, "api_keys.manage"),
    get("/administration/customers", customers, "tenants.manage"),
    post("/administration/customers", create_customer, "tenants.manage"),
    post("/administration/customers/{tenant_id}/name", rename_customer, "tenants.manage"),
    post("/administration/customers/{tenant_id}/state", customer_state, "tenants.manage"),
    get("/administration/audit", audit, "audit.view"),
    post("/administration/audit/verify", verify_audit, "audit.view"),
)
