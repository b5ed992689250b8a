"""One request of one person: who it is, what they sent, and how their page is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, unquote, urlencode

from markupsafe import Markup
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from keibi.errors import InputError
from keibi.manager.access.model import NotSignedInError, Principal
from keibi.manager.console.formatting import Format
from keibi.manager.console.language import Catalogue
from keibi.manager.console.navigation import ADMINISTRATION, EVENT_PAGES, NAVIGATION, Entry
from keibi.manager.console.security import PAGE_HEADERS
from keibi.manager.console.view import View
from keibi.manager.services import Services
from keibi.manager.tenants.model import Tenant

FLASH_COOKIE = "__Host-keibi-flash"
LANGUAGE_COOKIE = "__Host-keibi-language"
ZONE_COOKIE = "keibi-zone"
MAX_FLASH_CHARACTERS = 400
VERSION = version("keibi")


@dataclass(frozen=True)
class Visit:
    """What a page handler is given."""

    request: Request
    services: Services
    view: View
    format: Format
    someone: Principal | None
    csrf_token: str
    form: FormData

    @property
    def principal(self) -> Principal:
        """Whoever is signed in.

        Raises:
            NotSignedInError: nobody is.
        """
        if self.someone is None:
            raise NotSignedInError("not_signed_in", "you are not signed in", hint="sign in first")
        return self.someone

    @property
    def catalogue(self) -> Catalogue:
        """The texts in the reader's language."""
        return self.format.catalogue

    @property
    def language(self) -> str:
        """The reader's language, "en" or "ja"."""
        return self.format.catalogue.language

    @property
    def query(self) -> QueryParams:
        """What stands after the question mark."""
        return self.request.query_params

    @property
    def is_fragment(self) -> bool:
        """Whether HTMX asks for a part of a page."""
        return self.request.headers.get("hx-request") == "true"

    def _(self, message: str) -> str:
        """Return the text in the reader's language."""
        return self.format.catalogue.gettext(message)

    def path(self, name: str) -> str:
        """Return a part of the address that the route names."""
        return str(self.request.path_params[name])

    @property
    def theme(self) -> str:
        """The reader's theme: "system", "light" or "dark"."""
        return self.someone.theme if self.someone else "system"

    @property
    def here(self) -> str:
        """This page's address with its query, to come back to."""
        query = self.request.url.query
        return self.request.url.path + (f"?{query}" if query else "")

    @property
    def version(self) -> str:
        """The version of this manager."""
        return VERSION

    @property
    def navigation(self) -> list[Entry]:
        """The entries that the visitor may see."""
        return [
            entry
            for entry in NAVIGATION
            if (entry.permission is None or self.may(entry.permission))
            and (entry.address != "/administration" or self.administration)
        ]

    @property
    def administration(self) -> list[Entry]:
        """The parts of the administration that the visitor may see."""
        return [entry for entry in ADMINISTRATION if entry.permission is None or self.may(entry.permission)]

    @property
    def event_pages(self) -> list[Entry]:
        """The pages of modules below the events that the visitor may see."""
        return [entry for entry in EVENT_PAGES if entry.permission is None or self.may(entry.permission)]

    def hidden_fields(self, names: Sequence[str]) -> Markup:
        """Return the present values of some query parameters as hidden fields, for a form that changes the others."""
        pairs = [(name, value) for name, value in self.query.multi_items() if name in names and value]
        return Markup("").join(Markup('<input type="hidden" name="{}" value="{}">').format(*pair) for pair in pairs)

    def is_in(self, address: str) -> bool:
        """Whether this page stands below that entry of the navigation."""
        path = self.request.url.path
        return path == address if address == "/" else path == address or path.startswith(address + "/")

    @cached_property
    def customers(self) -> list[Tenant]:
        """The customers that the visitor has any right in; one is not worth a choice."""
        if self.someone is None or len(self.someone.tenant_ids) < 2:
            return []
        return self.services.tenants.list(self.someone)

    @property
    def customer_name(self) -> str:
        """The name of the chosen customer, or "" for all."""
        chosen = self.someone.current_tenant_id if self.someone else None
        return next((customer.name for customer in self.customers if customer.tenant_id == chosen), "")

    def customer_of(self, tenant_id: str) -> str:
        """Return the name of a row's customer where rows of several are shown together, else ""."""
        if self.someone is None or self.someone.current_tenant_id is not None:
            return ""
        return next((customer.name for customer in self.customers if customer.tenant_id == tenant_id), "")

    def field(self, name: str, default: str = "") -> str:
        """Return a field of the form that was sent, without space around it."""
        value = self.form.get(name, default)
        return value.strip() if isinstance(value, str) else default

    def raw_field(self, name: str) -> str:
        """Return a field of the form exactly as it was sent: a password, or text where space counts."""
        value = self.form.get(name, "")
        return value if isinstance(value, str) else ""

    def fields(self, name: str) -> list[str]:
        """Return all fields of that name."""
        return [value for value in self.form.getlist(name) if isinstance(value, str)]

    def number_field(self, name: str, default: int) -> int:
        """Return a whole number from the form.

        Raises:
            InputError: it is not one.
        """
        text = self.field(name)
        if not text:
            return default
        try:
            return int(text)
        except ValueError as error:
            raise InputError("number_invalid", f"{text[:40]!r} is not a whole number", where=name) from error

    def address_with(self, **changes: str | None) -> str:
        """Return this page's address with some query parameters changed, or removed (None)."""
        kept = [(name, value) for name, value in self.query.multi_items() if name not in changes and value]
        kept += [(name, value) for name, value in changes.items() if value]
        return self.request.url.path + ("?" + urlencode(kept) if kept else "")

    def page(self, template: str, *, title: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a whole page, or a fragment where the template is one."""
        flash = unquote(self.request.cookies.get(FLASH_COOKIE, ""))[:MAX_FLASH_CHARACTERS]
        html = self.view.render(self.language, template, {**self.common(), "title": title, "flash": flash, **values})
        response = HTMLResponse(html, status, headers=dict(PAGE_HEADERS))
        if flash and not self.is_fragment:
            response.delete_cookie(FLASH_COOKIE, secure=True, httponly=True, samesite="lax")
        return response

    def fragment(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a part of a page."""
        html = self.view.render(self.language, template, {**self.common(), **values})
        return HTMLResponse(html, status, headers=dict(PAGE_HEADERS))

    def go(self, address: str, flash: str = "") -> Response:
        """Send the browser to another page, with a word of confirmation to show there."""
        if self.is_fragment:
            response = Response(status_code=200, headers={**PAGE_HEADERS, "HX-Redirect": address})
        else:
            response = Response(status_code=303, headers={**PAGE_HEADERS, "Location": address})
        if flash:
            response.set_cookie(FLASH_COOKIE, quote(flash), max_age=20, secure=True, httponly=True, samesite="lax")
        return response

    def may(self, permission: str, tenant_id: str | None = None) -> bool:
        """Whether the visitor has the permission for that tenant, or anywhere in sight."""
        if self.someone is None:
            return False
        if tenant_id is None:
            return self.someone.may_somewhere(permission)
        return self.someone.may(permission, tenant_id=tenant_id)

    def common(self) -> Mapping[str, Any]:
        """Return what every template may use."""
        return {
            "visit": self,
            "me": self.someone,
            "csrf": self.csrf_token,
            "time": self.format.time,
            "ago": self.format.ago,
            "exact": self.format.exact,
            "duration": self.format.duration,
            "number": self.format.number,
            "size": self.format.size,
            "path": self.request.url.path,
            "may": self.may,
        }
