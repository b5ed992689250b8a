"""Fetches the console's third-party files at fixed versions and writes them, with their licences, beside `VENDORED.json`.

Needs `npm` on the PATH; run by hand when a version below changes, and commit what it writes. The console itself has no build
step: what is served is what stands in `static/vendor`.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass

TARGET = pathlib.Path(__file__).resolve().parents[1] / "src/keibi/manager/console/static/vendor"
ICON_BODY = re.compile(r"<path stroke=\"none\"[^>]*/>|</?svg[^>]*>", re.DOTALL)


@dataclass(frozen=True)
class Package:
    """One package of which some files are kept: path in the package -> name in `static/vendor`."""

    name: str
    version: str
    licence: str
    files: dict[str, str]


PACKAGES = (
    Package("htmx.org", "4.0.1", "0BSD", {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE.txt"}),
    Package(
        "uplot",
        "1.6.32",
        "MIT",
        {"dist/uPlot.iife.min.js": "uplot.min.js", "dist/uPlot.min.css": "uplot.min.css", "LICENSE": "uplot.LICENSE.txt"},
    ),
    Package(
        "@fontsource-variable/inter",
        "5.3.0",
        "OFL-1.1",
        {"files/inter-latin-wght-normal.woff2": "inter.woff2", "LICENSE": "inter.LICENSE.txt"},
    ),
    Package(
        "@fontsource-variable/jetbrains-mono",
        "5.3.0",
        "OFL-1.1",
        {"files/jetbrains-mono-latin-wght-normal.woff2": "jetbrains-mono.woff2", "LICENSE": "jetbrains-mono.LICENSE.txt"},
    ),
)
ICONS = Package("@tabler/icons", "3.52.0", "MIT", {"LICENSE": "tabler-icons.LICENSE.txt"})
ICON_NAMES = (
    "activity", "alert-circle", "alert-triangle", "apps", "arrows-diff", "ban", "binary-tree", "bolt", "bookmark", "building",
    "check", "checklist", "chevron-down", "chevron-left", "chevron-right", "circle-check", "clock", "columns-3", "copy", "cpu",
    "device-desktop", "dots", "download", "eye", "file", "file-diff", "filter", "folder", "history", "id-badge-2", "inbox",
    "info-circle", "key", "keyboard", "language", "layout-dashboard", "list-search", "lock", "logout", "menu-2", "moon",
    "package",
    "pencil", "player-pause", "player-play", "plug", "plus", "refresh", "rotate", "search", "server", "settings", "shield-check",
    "sun", "sun-moon", "tag", "terminal-2", "ticket", "trash", "user", "user-circle", "user-cog", "users", "users-group", "x",
)  # fmt: skip


def unpack(package: Package, directory: pathlib.Path) -> pathlib.Path:
    """Return the folder of the unpacked package."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    folder = directory / packed.removesuffix(".tgz")
    with tarfile.open(directory / packed) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def icons(folder: pathlib.Path) -> str:
    """Return the chosen icons as JSON: name -> inner SVG."""
    bodies = {}
    for name in ICON_NAMES:
        svg = (folder / "icons/outline" / f"{name}.svg").read_text()
        bodies[name] = " ".join(ICON_BODY.sub("", svg).split())
    return json.dumps(bodies, indent=0) + "\n"


def main() -> int:
    """Write the files and the list of them."""
    TARGET.mkdir(parents=True, exist_ok=True)
    listed = []
    with tempfile.TemporaryDirectory() as temporary:
        for package in (*PACKAGES, ICONS):
            folder = unpack(package, pathlib.Path(temporary))
            written = {}
            for source, name in package.files.items():
                data = (folder / source).read_bytes()
                if name.endswith(".js"):
                    # The map is not shipped, so a browser's tools must not look for it.
                    data = re.sub(rb"\n?//# sourceMappingURL=\S+\s*$", b"\n", data)
                written[name] = data
            if package is ICONS:
                written["icons.json"] = icons(folder).encode()
            for name, data in written.items():
                (TARGET / name).write_bytes(data)
            listed.append(
                {
                    "name": package.name,
                    "version": package.version,
                    "licence": package.licence,
                    "files": {name: hashlib.sha256(data).hexdigest() for name, data in written.items()},
                }
            )
    (TARGET / "VENDORED.json").write_text(json.dumps(listed, indent=2) + "\n")
    print(f"{len(listed)} packages in {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
