"""Static files under addresses that hold their digest, so that browsers may keep them for ever; and the icons."""

import hashlib
import json
import mimetypes
import pathlib
from dataclasses import dataclass

from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

STATIC_DIRECTORY = pathlib.Path(__file__).with_name("static")
SERVED_SUFFIXES = frozenset({".css", ".js", ".woff2", ".svg", ".png", ".txt"})
mimetypes.add_type("font/woff2", ".woff2")

SEVERITY_MARKS = {
    "critical": '<path d="M3.5 0h5L12 3.5v5L8.5 12h-5L0 8.5v-5z" fill="currentColor"/>',
    "high": '<path d="M6 .6 11.8 11.2H.2z" fill="currentColor"/>',
    "medium": '<path d="M6 .4 11.6 6 6 11.6.4 6z" fill="currentColor"/>',
    "low": '<circle cx="6" cy="6" r="4.4" fill="none" stroke="currentColor" stroke-width="1.8"/>',
}
HEALTH_MARKS = {
    "active": '<circle cx="6" cy="6" r="5.6" fill="currentColor"/>',
    "warning": '<path d="M6 .6 11.8 11.2H.2z" fill="currentColor"/>',
    "error": '<path d="M3.5 0h5L12 3.5v5L8.5 12h-5L0 8.5v-5z" fill="currentColor"/>',
    "inactive": '<circle cx="6" cy="6" r="4.4" fill="none" stroke="currentColor" stroke-width="1.8"/>',
    "starting": '<circle cx="6" cy="6" r="4.6" fill="none" stroke="currentColor" stroke-width="1.6" stroke-dasharray="3 2.2"/>',
    "not_supported": '<path d="M1 6h10" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round"/>',
}


@dataclass(frozen=True)
class Assets:
    """The static files as they were at start: contents, addresses and icons."""

    files: dict[str, bytes]  # address under /static/ -> content
    addresses: dict[str, str]  # "css/base.css" -> "/static/3f2a…/css/base.css"
    icons: dict[str, str]

    def address(self, name: str) -> str:
        """Return where a static file is served.

        Raises:
            KeyError: there is none of that name, which is a mistake in a template.
        """
        return self.addresses[name]

    def icon(self, name: str, css_class: str = "") -> Markup:
        """Return an icon as SVG. It says nothing to a screen reader: the words beside it do."""
        body = self.icons[name]
        return Markup(  # noqa: S704 (vendored with the program)
            f'<svg class="icon {css_class}" viewBox="0 0 24 24" aria-hidden="true">{body}</svg>'
        )

    def severity_mark(self, severity: str) -> Markup:
        """Return the shape of a severity."""
        return _mark(SEVERITY_MARKS.get(severity, SEVERITY_MARKS["low"]))

    def health_mark(self, health: str) -> Markup:
        """Return the shape of a health."""
        return _mark(HEALTH_MARKS.get(health, HEALTH_MARKS["inactive"]))

    def route(self) -> Route:
        """Return the route that serves the files."""
        return Route("/static/{path:path}", self._serve, methods=["GET"], name="static")

    async def _serve(self, request: Request) -> Response:
        path = request.path_params["path"]
        content = self.files.get(path)
        if content is None:
            raise HTTPException(404)
        media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return Response(
            content,
            media_type=media_type,
            headers={"Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"},
        )


def load_assets(directory: pathlib.Path = STATIC_DIRECTORY) -> Assets:
    """Read the static files.

    All share one version in their addresses, because style sheets and scripts name each other by relative paths.
    """
    contents = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix in SERVED_SUFFIXES
    }
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    version = digest.hexdigest()[:12]
    return Assets(
        files={f"{version}/{name}": content for name, content in contents.items()},
        addresses={name: f"/static/{version}/{name}" for name in contents},
        icons=json.loads((directory / "vendor/icons.json").read_text("utf-8")),
    )


def _mark(body: str) -> Markup:
    return Markup(f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{body}</svg>')  # noqa: S704 (from this file)
