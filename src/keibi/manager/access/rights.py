"""The rule that nobody can give more than they have."""

from keibi.errors import AccessError
from keibi.manager.access.model import Principal, Role


def check_may_give(principal: Principal, role: Role, tenant_id: str | None, group_id: str | None = None) -> None:
    """Do nothing if the principal has every permission of the role, there, themselves.

    Raises:
        AccessError: it lacks some, named.
    """
    missing = sorted(
        permission for permission in role.permissions if not principal.may(permission, tenant_id=tenant_id, group_id=group_id)
    )
    if missing:
        raise AccessError(
            "more_than_own",
            f"you cannot give the role {role.name} here: you lack {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
            hint="ask somebody who has these rights themselves",
        )
