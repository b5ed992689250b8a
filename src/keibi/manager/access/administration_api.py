"""REST: users, their grants, roles and API keys."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import Field

from keibi.manager.access.api import Access, Asker, Body
from keibi.manager.access.api_keys import ApiKey, NewApiKey
from keibi.manager.access.model import ALL_PERMISSIONS, Role
from keibi.manager.access.users import User
from keibi.manager.http_answers import answer, answers
from keibi.manager.paging import DEFAULT_LIMIT, MAX_LIMIT, Page

users_router = APIRouter(prefix="/api/v1/users", tags=["users"])
roles_router = APIRouter(prefix="/api/v1/roles", tags=["roles"])
keys_router = APIRouter(prefix="/api/v1/api-keys", tags=["API keys"])

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]


class NewUserBody(Body):
    """A new user."""

    name: str = Field(max_length=200)
    password: str = Field(max_length=1000)
    full_name: str = Field("", max_length=200)
    email: str = Field("", max_length=254)
    language: str = "en"
    must_change_password: bool = True


class UserChangeBody(Body):
    """What to change of a user; what is left out stays."""

    full_name: str | None = Field(None, max_length=200)
    email: str | None = Field(None, max_length=254)
    is_enabled: bool | None = None
    expected_version: int | None = None


class NewPasswordBody(Body):
    """Another password for somebody."""

    password: str = Field(max_length=1000)


class GrantBody(Body):
    """A role to give."""

    role_id: str
    tenant_id: str | None = Field(None, description="None: for all customers.")
    group_id: str | None = Field(None, description="Only for this group of computers and those below it.")


class RoleBody(Body):
    """A role of one's own."""

    name: str = Field(max_length=200)
    permissions: list[str]
    description: str = Field("", max_length=1000)


class RoleChangeBody(Body):
    """What to change of a role; what is left out stays."""

    name: str | None = Field(None, max_length=200)
    permissions: list[str] | None = None
    description: str | None = Field(None, max_length=1000)
    expected_version: int | None = None


class NewKeyBody(Body):
    """A key to make."""

    name: str = Field(max_length=200)
    role_id: str
    tenant_id: str | None = Field(None, description="None: the caller's own.")
    expires_at: float | None = None


@users_router.get("", summary="List users", responses=answers(Page[User]))
def list_users(access: Access, asker: Asker, cursor: str | None = None, limit: Limit = DEFAULT_LIMIT, text: str = "") -> Response:
    """Return users by name."""
    return answer(access.users.list(asker, cursor, limit, text))


@users_router.post("", status_code=201, summary="Make a user", responses=answers(User, 201))
def create_user(access: Access, asker: Asker, body: NewUserBody) -> Response:
    """Make a user without any role yet."""
    user = access.users.create(
        asker,
        body.name,
        body.password,
        full_name=body.full_name,
        email=body.email,
        language=body.language,
        must_change_password=body.must_change_password,
    )
    return answer(user, 201)


@users_router.get("/{user_id}", summary="One user", responses=answers(User))
def get_user(access: Access, asker: Asker, user_id: str) -> Response:
    """Return one user."""
    return answer(access.users.get(asker, user_id))


@users_router.patch("/{user_id}", summary="Change, disable or enable a user", responses=answers(User))
def change_user(access: Access, asker: Asker, user_id: str, body: UserChangeBody) -> Response:
    """Change a user."""
    user = access.users.change(
        asker,
        user_id,
        full_name=body.full_name,
        email=body.email,
        is_enabled=body.is_enabled,
        expected_version=body.expected_version,
    )
    return answer(user)


@users_router.post("/{user_id}/password", status_code=204, summary="Give a user another password")
def reset_password(access: Access, asker: Asker, user_id: str, body: NewPasswordBody) -> Response:
    """Give a user another password, which they must change; their sessions end."""
    access.users.reset_password(asker, user_id, body.password)
    return Response(status_code=204)


@users_router.post("/{user_id}/unlock", status_code=204, summary="Unlock a user")
def unlock_user(access: Access, asker: Asker, user_id: str) -> Response:
    """Let a locked-out user try again."""
    access.unlock(asker, user_id)
    return Response(status_code=204)


@users_router.delete("/{user_id}/totp", status_code=204, summary="Turn a user's one-time codes off")
def clear_totp(access: Access, asker: Asker, user_id: str) -> Response:
    """Help somebody who lost their phone."""
    access.users.clear_totp(asker, user_id)
    return Response(status_code=204)


@users_router.post("/{user_id}/grants", status_code=201, summary="Give a user a role", responses=answers(User, 201))
def give_role(access: Access, asker: Asker, user_id: str, body: GrantBody) -> Response:
    """Give a role: nobody can give more than they have."""
    user = access.users.give(asker, user_id, body.role_id, tenant_id=body.tenant_id, group_id=body.group_id)
    return answer(user, 201)


@users_router.delete("/{user_id}/grants/{grant_id}", summary="Take a role back", responses=answers(User))
def take_role_back(access: Access, asker: Asker, user_id: str, grant_id: str) -> Response:
    """Take a role back."""
    return answer(access.users.take_back(asker, user_id, grant_id))


@roles_router.get("", summary="List roles", responses=answers(list[Role]))
def list_roles(access: Access, asker: Asker) -> Response:
    """Return built-in and own roles."""
    return answer(access.roles.list(asker))


@roles_router.get("/permissions", summary="All permissions", responses=answers(list[str]))
def list_permissions(asker: Asker) -> Response:
    """Return the names of all permissions."""
    asker.require("users.view")
    return answer(sorted(ALL_PERMISSIONS))


@roles_router.post("", status_code=201, summary="Make a role", responses=answers(Role, 201))
def create_role(access: Access, asker: Asker, body: RoleBody) -> Response:
    """Make a role of one's own."""
    return answer(access.roles.create(asker, body.name, body.permissions, body.description), 201)


@roles_router.get("/{role_id}", summary="One role", responses=answers(Role))
def get_role(access: Access, asker: Asker, role_id: str) -> Response:
    """Return one role."""
    return answer(access.roles.get(asker, role_id))


@roles_router.patch("/{role_id}", summary="Change a role", responses=answers(Role))
def change_role(access: Access, asker: Asker, role_id: str, body: RoleChangeBody) -> Response:
    """Change a role; whoever has it has the new permissions at once."""
    role = access.roles.change(
        asker,
        role_id,
        name=body.name,
        permissions=body.permissions,
        description=body.description,
        expected_version=body.expected_version,
    )
    return answer(role)


@roles_router.delete("/{role_id}", status_code=204, summary="Remove a role")
def remove_role(access: Access, asker: Asker, role_id: str) -> Response:
    """Remove a role that nobody has."""
    access.roles.remove(asker, role_id)
    return Response(status_code=204)


@keys_router.get("", summary="List API keys", responses=answers(list[ApiKey]))
def list_keys(access: Access, asker: Asker) -> Response:
    """Return API keys, without their secrets."""
    return answer(access.api_keys.list(asker))


@keys_router.post("", status_code=201, summary="Make an API key", responses=answers(NewApiKey, 201))
def create_key(access: Access, asker: Asker, body: NewKeyBody) -> Response:
    """Make an API key; its secret is shown this once."""
    key = access.api_keys.create(asker, body.name, body.role_id, tenant_id=body.tenant_id, expires_at=body.expires_at)
    return answer(key, 201)


@keys_router.delete("/{key_id}", status_code=204, summary="Revoke an API key")
def revoke_key(access: Access, asker: Asker, key_id: str) -> Response:
    """Make an API key worthless."""
    access.api_keys.revoke(asker, key_id)
    return Response(status_code=204)
