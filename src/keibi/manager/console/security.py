"""What a browser is allowed to do with our pages, and what it must show before it may change something."""

from collections.abc import Mapping
from types import MappingProxyType

from starlette.datastructures import Headers

from keibi.errors import RefusedError

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
        "Cache-Control": "no-store",
    }
)


def check_same_origin(headers: Headers) -> None:
    """Do nothing if the browser says that the request comes from one of our own pages (or says nothing at all).

    Signing in has no session yet whose token could be shown, so this is what stands before it.

    Raises:
        RefusedError: it comes from another site.
    """
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    host = headers.get("host", "")
    is_foreign = site not in (None, "same-origin", "none")
    if origin is not None and origin != "null":
        is_foreign = is_foreign or origin.partition("://")[2] != host
    if is_foreign:
        raise RefusedError(
            "foreign_origin",
            f"this request comes from another site ({origin or site}), not from the console",
            hint="open the console itself and try again there",
        )


def safe_next(path: str) -> str:
    """Return where to go after signing in: a path of this console, never another host."""
    return "/" if path.startswith("/sign-") else own_address(path, "/")


def own_address(address: str, otherwise: str) -> str:
    """Return an address that a form or a link named, if it is one of this console; else the other one."""
    # Browsers take a backslash for a slash, and leave out tabs and ends of lines: "/<tab>/host" is another host's.
    is_ours = address.startswith("/") and not address.startswith("//") and "\\" not in address and address.isprintable()
    return address if is_ours else otherwise
