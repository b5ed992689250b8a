"""REST: signing in, and who asks."""

from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from keibi.errors import AccessError, RefusedError
from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.access.service import AccessService
from keibi.manager.access.sessions import COOKIE_NAME, CSRF_HEADER, SignedInSession
from keibi.manager.http_answers import answer, answers
from keibi.manager.http_guard import client_address

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TENANT_HEADER = "X-Keibi-Tenant"
_WITH_OLD_PASSWORD = ("/api/v1/auth/",)
"""What somebody may do who must change their password first."""

router = APIRouter(prefix="/api/v1/auth", tags=["signing in"])


def access_service(request: Request) -> AccessService:
    """Return the service of the running manager."""
    service: AccessService = request.app.state.services.access
    return service


Access = Annotated[AccessService, Depends(access_service)]


def current_principal(
    request: Request,
    access: Access,
    authorization: Annotated[str, Header(include_in_schema=False)] = "",
    tenant: Annotated[str, Header(alias=TENANT_HEADER, description="Look at one customer only.")] = "",
    csrf: Annotated[str, Header(alias=CSRF_HEADER, include_in_schema=False)] = "",
) -> Principal:
    """Return whoever asks: an API key in the Authorization header, else the session in the cookie.

    What changes something must carry the session's CSRF token, and come from a page of ours; API keys need neither.

    Raises:
        NotSignedInError: nobody known. AccessError: the tenant is not theirs, or a new password is needed first.
        RefusedError: another site made the browser send this.
    """
    cookie = request.cookies.get(COOKIE_NAME, "")
    if authorization:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise NotSignedInError("scheme_unknown", "the Authorization header is not 'Bearer kb_…'")
        principal = access.authenticate_api_key(secret.strip())
    elif cookie:
        if request.method not in SAFE_METHODS:
            check_origin(request)
        principal = access.authenticate_session(cookie, None if request.method in SAFE_METHODS else csrf)
    else:
        raise NotSignedInError("not_signed_in", "you are not signed in", hint="sign in, or send an API key")
    if principal.must_change_password and not request.url.path.startswith(_WITH_OLD_PASSWORD):
        raise AccessError("password_change_required", "you must change your password first", hint="POST /api/v1/auth/password")
    return principal.in_tenant(tenant) if tenant else principal


Asker = Annotated[Principal, Depends(current_principal)]


def check_origin(request: Request) -> None:
    """Do nothing if a browser says that the request comes from our own pages, or an allowed origin, or says nothing.

    Raises:
        RefusedError: it comes from another site.
    """
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    if origin is not None:
        is_ours = urlsplit(origin).netloc == request.headers.get("host", "")
        is_foreign = not is_ours and origin not in request.app.state.services.config.allowed_origins
    else:
        is_foreign = site not in (None, "same-origin", "none")
    if is_foreign:
        raise RefusedError("foreign_origin", f"this request comes from another site ({origin or site})", hint="open the console")


class Body(BaseModel):
    """A body that refuses keys it does not know, so that a misspelt one is found."""

    model_config = ConfigDict(extra="forbid")


class SignInBody(Body):
    """Who signs in."""

    name: str = Field(max_length=200)
    password: str = Field(max_length=1000)
    totp: str = Field("", max_length=32, description="One-time or recovery code, where the account has them.")


class PasswordBody(Body):
    """Changing one's own password."""

    old: str = Field(max_length=1000)
    new: str = Field(max_length=1000)


class PreferencesBody(Body):
    """What a person wants to see; what is left out stays."""

    language: str | None = None
    theme: str | None = None
    time_zone: str | None = None


class TenantChoiceBody(Body):
    """Which customer to look at."""

    tenant_id: str | None = Field(None, description="None: all that are granted.")


class CodeBody(Body):
    """A one-time code."""

    code: str = Field(max_length=32)


class ConfirmBody(Body):
    """One's own password, to confirm."""

    password: str = Field(max_length=1000)


def told(principal: Principal) -> dict[str, Any]:
    """Return what a principal may know about themselves."""
    return {
        "user_id": principal.user_id,
        "name": principal.name,
        "kind": principal.kind,
        "tenant_ids": sorted(principal.tenant_ids),
        "current_tenant_id": principal.current_tenant_id,
        "home_tenant_id": principal.home_id,
        "language": principal.language,
        "theme": principal.theme,
        "time_zone": principal.time_zone,
        "must_change_password": principal.must_change_password,
        "grants": [
            {
                "permissions": sorted(grant.permissions),
                "tenant_id": grant.tenant_id,
                "group_ids": None if grant.group_ids is None else sorted(grant.group_ids),
            }
            for grant in principal.grants
        ],
    }


@router.post("/sign-in", summary="Sign in", responses=answers(dict[str, Any]))
def sign_in(request: Request, access: Access, body: SignInBody) -> Response:
    """Start a session: sets the cookie, and returns the CSRF token for X-Keibi-Csrf."""
    check_origin(request)
    address = client_address(request, request.app.state.services.config.trusted_proxies)
    signed_in = access.sign_in(body.name, body.password, body.totp, address, request.headers.get("user-agent", ""))
    response = answer(
        {"csrf_token": signed_in.csrf_token, "expires_at": signed_in.expires_at, "principal": told(signed_in.principal)}
    )
    set_session_cookie(response, signed_in.cookie)
    return response


@router.post("/sign-out", status_code=204, summary="Sign out")
def sign_out(request: Request, access: Access, asker: Asker) -> Response:
    """End this session."""
    if asker.kind == "session":
        access.sign_out(request.cookies.get(COOKIE_NAME, ""))
    response = Response(status_code=204)
    response.delete_cookie(COOKIE_NAME, secure=True, httponly=True, samesite="lax")
    return response


@router.get("/me", summary="Who am I", responses=answers(dict[str, Any]))
def who_am_i(asker: Asker) -> Response:
    """Return who asks, and what they may do where."""
    return answer(told(asker))


@router.patch("/me", summary="Change my preferences", responses=answers(dict[str, Any]))
def change_preferences(access: Access, asker: Asker, body: PreferencesBody) -> Response:
    """Keep language, theme or time zone."""
    user = access.users.change_own(asker, language=body.language, theme=body.theme, time_zone=body.time_zone)
    return answer({"language": user.language, "theme": user.theme, "time_zone": user.time_zone})


@router.post("/password", status_code=204, summary="Change my password")
def change_password(access: Access, asker: Asker, body: PasswordBody) -> Response:
    """Change one's own password; all other sessions end."""
    access.users.change_own_password(asker, body.old, body.new)
    return Response(status_code=204)


@router.post("/tenant", status_code=204, summary="Choose a customer")
def choose_tenant(access: Access, asker: Asker, body: TenantChoiceBody) -> Response:
    """Keep with the session which customer is looked at."""
    access.sessions.choose_tenant(asker, body.tenant_id)
    return Response(status_code=204)


@router.get("/sessions", summary="My sessions", responses=answers(list[SignedInSession]))
def list_sessions(access: Access, asker: Asker) -> Response:
    """Return one's own sessions, the newest first."""
    return answer(access.sessions.list(asker))


@router.delete("/sessions/{session_id}", status_code=204, summary="End one of my sessions")
def end_session(access: Access, asker: Asker, session_id: str) -> Response:
    """End one of one's own sessions."""
    access.sessions.end(asker, session_id)
    return Response(status_code=204)


@router.post("/totp", summary="Begin with one-time codes", responses=answers(dict[str, str]))
def enrol_totp(access: Access, asker: Asker) -> Response:
    """Return a new secret for an authenticator app; nothing changes until a code confirms it."""
    enrolment = access.second_factor.enrol(asker)
    return answer({"secret": enrolment.secret, "uri": enrolment.uri})


@router.post("/totp/confirm", summary="Turn one-time codes on", responses=answers(dict[str, list[str]]))
def confirm_totp(access: Access, asker: Asker, body: CodeBody) -> Response:
    """Turn one-time codes on, and return the recovery codes, this once."""
    return answer({"recovery_codes": access.second_factor.confirm(asker, body.code)})


@router.post("/totp/off", status_code=204, summary="Turn one-time codes off")
def turn_totp_off(access: Access, asker: Asker, body: ConfirmBody) -> Response:
    """Turn one-time codes off."""
    access.second_factor.turn_off(asker, body.password)
    return Response(status_code=204)


def set_session_cookie(response: Response, cookie: str) -> None:
    """Give the browser its session; no script can read it, and no other site or path gets it."""
    response.set_cookie(COOKIE_NAME, cookie, secure=True, httponly=True, samesite="lax", path="/")
