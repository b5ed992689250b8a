"""Whether a change is part of a package's installation or upgrade, which nobody needs to be woken for.

It is a hint of origin and not a proof: who is root can edit the package database. Therefore a change that is explained keeps its
event; only its words and its drift's default answer differ.
"""

from dataclasses import dataclass

from keibi.protection.integrity_monitoring.events import PackageOrigin


@dataclass(frozen=True)
class Packaged:
    """What a package database says of a file."""

    name: str
    version: str
    digest: str  # hexadecimal, "" where the database has none


def explain(recorded: Packaged | None, found_digest: str, previous_version: str) -> PackageOrigin | None:
    """Return the package that explains a file's new content, or None when none does.

    `found_digest` is of the new content, by the algorithm that the database uses, "" when it is not known. A file that a
    package owns but whose content is another one is *not* explained: that is the case worth an alarm.
    """
    if recorded is None:
        return None
    if not recorded.digest or not found_digest or recorded.digest.lower() != found_digest.lower():
        return None
    previous = previous_version if previous_version != recorded.version else ""
    return PackageOrigin(recorded.name, recorded.version, previous, is_verified=True)


def origin_sentence(origin: PackageOrigin) -> str:
    """Return the words that follow the event's sentence."""
    if origin.previous_version:
        return f"Part of the upgrade of {origin.name} from {origin.previous_version} to {origin.version}."
    return f"Part of the installation of {origin.name} {origin.version}."
