"""Enrolment tokens, and the one command that a new computer is protected with."""

import base64
import shlex

from starlette.responses import Response

from keibi.manager.agents.model import NewEnrolmentToken
from keibi.manager.console.endpoint import Page, get, post
from keibi.manager.console.language import N_
from keibi.manager.console.names import group_paths, policy_paths
from keibi.manager.console.visit import Visit

DAY_SECONDS = 86400.0
LIFETIMES = {"1": N_("1 day"), "7": N_("7 days"), "30": N_("30 days"), "365": N_("1 year")}
CA_ON_COMPUTER = "/etc/keibi/manager-ca.pem"


def tokens(visit: Visit) -> Response:
    """List tokens."""
    return _page(visit, None)


def create(visit: Visit) -> Response:
    """Make a token and show the command with it this once."""
    new = visit.services.agents.create_token(
        visit.principal,
        visit.field("name"),
        group_id=visit.field("group") or None,
        policy_id=visit.field("policy") or None,
        lasts_seconds=visit.number_field("days", 7) * DAY_SECONDS,
        max_uses=visit.number_field("max_uses", 1),
    )
    return _page(visit, new)


def revoke(visit: Visit) -> Response:
    """Make a token worthless."""
    visit.services.agents.revoke_token(visit.principal, visit.path("token_id"))
    return visit.go("/administration/tokens", visit._("The token is revoked."))


def enrol_command(manager_url: str, token: str, ca_pem: bytes) -> str:
    """Return the command to paste, as root, on the computer to protect. It carries the authority that the agent pins."""
    carried = base64.b64encode(ca_pem).decode()
    return (
        f"install -d -m 755 /etc/keibi && echo {carried} | base64 -d > {CA_ON_COMPUTER} && "
        f"keibi agent enrol --manager {shlex.quote(manager_url)} --token {shlex.quote(token)} --ca {CA_ON_COMPUTER}"
    )


def _page(visit: Visit, new: NewEnrolmentToken | None) -> Response:
    page = visit.services.agents.list_tokens(visit.principal, visit.query.get("cursor"))
    groups, policies = group_paths(visit), policy_paths(visit)
    command = ""
    if new is not None:
        with open(visit.services.config.path("tls", "ca.pem"), "rb") as file:
            command = enrol_command(str(visit.request.base_url).rstrip("/"), new.secret, file.read())
    return visit.page(
        "tokens.html",
        title=visit._("Enrolment tokens"),
        tokens=page.items,
        page=page,
        secret=new.secret if new else "",
        secret_token=new.token if new else None,
        command=command,
        group_names=groups,
        groups=[("", visit._("no group")), *groups.items()],
        policies=[("", visit._("the one that fits its system")), *policies.items()],
        days=[(days, visit._(word)) for days, word in LIFETIMES.items()],
        now=visit.view.now(),
    )


PAGES: tuple[Page, ...] = (
    get("/administration/tokens", tokens, "tokens.manage"),
    post("/administration/tokens", create, "tokens.manage"),
    post("/administration/tokens/{token_id}/revoke", revoke, "tokens.manage"),
)
