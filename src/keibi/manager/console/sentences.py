"""An event in one plain sentence, in the reader's language. Names in it come from a protected computer and are never markup."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape

from keibi.manager.console.language import N_, Catalogue
from keibi.manager.console.malware_sentences import (
    ANY_MALWARE,
    WITH_PROCESS,
    WITH_PROCESS_AND_USER,
    malware_pattern,
)
from keibi.manager.events.model import EventRow

WHAT: Mapping[str, str] = MappingProxyType(
    {
        "file.created": N_("The file %(subject)s was created"),
        "file.updated": N_("The file %(subject)s was changed"),
        "file.deleted": N_("The file %(subject)s was deleted"),
        "file.renamed": N_("The file %(subject)s got this name"),
        "directory.created": N_("The directory %(subject)s was created"),
        "directory.updated": N_("The directory %(subject)s was changed"),
        "directory.deleted": N_("The directory %(subject)s was deleted"),
        "directory.renamed": N_("The directory %(subject)s got this name"),
        "process.created": N_("The process %(subject)s was started"),
        "process.updated": N_("The process %(subject)s changed"),
        "process.deleted": N_("The process %(subject)s ended"),
        "port.created": N_("The port %(subject)s was opened"),
        "port.updated": N_("The port %(subject)s is now served by something else"),
        "port.deleted": N_("The port %(subject)s was closed"),
        "user.created": N_("The user %(subject)s was created"),
        "user.updated": N_("The user %(subject)s was changed"),
        "user.deleted": N_("The user %(subject)s was deleted"),
        "group.created": N_("The group %(subject)s was created"),
        "group.updated": N_("The group %(subject)s was changed"),
        "group.deleted": N_("The group %(subject)s was deleted"),
        "service.created": N_("The service %(subject)s was added"),
        "service.updated": N_("The service %(subject)s was changed"),
        "service.deleted": N_("The service %(subject)s was removed"),
        "software.created": N_("The software %(subject)s was installed"),
        "software.updated": N_("The software %(subject)s was updated"),
        "software.deleted": N_("The software %(subject)s was removed"),
        "registry_key.created": N_("The registry key %(subject)s was created"),
        "registry_key.updated": N_("The registry key %(subject)s was changed"),
        "registry_key.deleted": N_("The registry key %(subject)s was deleted"),
        "registry_value.created": N_("The registry value %(subject)s was created"),
        "registry_value.updated": N_("The registry value %(subject)s was changed"),
        "registry_value.deleted": N_("The registry value %(subject)s was deleted"),
        "software.blocked": N_("%(subject)s was blocked"),
        "software.would_block": N_("%(subject)s would have been blocked"),
        "software.appeared": N_("The software %(subject)s appeared"),
        "software.changed": N_("The software %(subject)s changed"),
        "software.distrusted": N_("%(subject)s was trusted, and a threat was found in it"),
        "software.trusted_again": N_("%(subject)s is trusted again"),
        "software.overdue": N_("No verdict on %(subject)s came in time"),
        "software.inline_code": N_("%(subject)s ran code that is in no file"),
        "inventory.finished": N_("The inventory of software was taken"),
        "maintenance.started": N_("Maintenance mode began: what is written is trusted"),
        "maintenance.ended": N_("Maintenance mode ended: what is written is judged again"),
        "control.unlocked": N_("Application control was unlocked on the computer: nothing is blocked"),
    }
)
RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "file.renamed": N_("The file %(previous)s was renamed to %(subject)s"),
        "directory.renamed": N_("The directory %(previous)s was renamed to %(subject)s"),
    }
)
BY_PROCESS_AND_USER = N_("%(what)s by %(process)s as %(user)s")
BY_PROCESS = N_("%(what)s by %(process)s")
BY_USER = N_("%(what)s by %(user)s")
ASKED_BY_PROCESS_AND_USER = N_("%(what)s, wanted by %(process)s as %(user)s")
ASKED_BY_PROCESS = N_("%(what)s, wanted by %(process)s")
BROUGHT_BY_PROCESS_AND_USER = N_("%(what)s, brought by %(process)s as %(user)s")
BROUGHT_BY_PROCESS = N_("%(what)s, brought by %(process)s")
BROUGHT = frozenset({"software.appeared", "software.changed"})
"""Kinds whose actor wrote the file."""
ASKED = frozenset({"software.blocked", "software.would_block", "software.overdue", "software.inline_code"})
"""Kinds whose actor is who wanted to run it, and did not do what is told."""
IN_PACKAGE = N_("%(what)s, as part of the package %(package)s %(version)s")


def sentence(catalogue: Catalogue, event: EventRow, details: Mapping[str, Any] | None = None) -> Markup:
    """Return what happened. A kind that has no sentence yet is told in the agent's own English words."""
    malware = malware_pattern(event.kind, event.action)
    if malware is not None:
        return _of_malware(catalogue, malware, event, details or {})
    pattern = WHAT.get(event.kind)
    if pattern is None:
        return escape(event.message or f"{event.kind} {event.subject}".strip())
    details = details or {}
    words = {"subject": _code(event.subject)}
    if details.get("previous_key") and event.kind in RENAMED:
        pattern = RENAMED[event.kind]
        words["previous"] = _code(str(details["previous_key"]))
    what = Markup(escape(catalogue.gettext(pattern))) % words  # noqa: S704 (escaped in this line)
    package = details.get("package")
    if isinstance(package, Mapping) and package.get("name"):
        named = {"what": what, "package": _code(package["name"]), "version": _code(package.get("version", ""))}
        what = Markup(escape(catalogue.gettext(IN_PACKAGE))) % named  # noqa: S704
    by = {"what": what, "process": _code(event.actor.process), "user": escape(event.actor.user)}
    by_both, by_process = BY_PROCESS_AND_USER, BY_PROCESS
    if event.kind in ASKED:
        by_both, by_process = ASKED_BY_PROCESS_AND_USER, ASKED_BY_PROCESS
    elif event.kind in BROUGHT:
        by_both, by_process = BROUGHT_BY_PROCESS_AND_USER, BROUGHT_BY_PROCESS
    if event.actor.process and event.actor.user:
        return Markup(escape(catalogue.gettext(by_both))) % by  # noqa: S704
    if event.actor.process:
        return Markup(escape(catalogue.gettext(by_process))) % by  # noqa: S704
    if event.actor.user:
        return Markup(escape(catalogue.gettext(BY_USER))) % by  # noqa: S704
    return what


def _of_malware(catalogue: Catalogue, pattern: str, event: EventRow, details: Mapping[str, Any]) -> Markup:
    """Return what was found. Whoever touched the file did not do what protection did, so it stands beside the sentence."""
    threat = details.get("threat")
    words = {"subject": _code(event.subject), "threat": _code(str(threat)) if threat else escape(catalogue.gettext(ANY_MALWARE))}
    what = Markup(escape(catalogue.gettext(pattern))) % words  # noqa: S704 (escaped in this line)
    if not event.actor.process or event.actor.process == event.subject:
        return what
    by = {"what": what, "process": _code(event.actor.process), "user": escape(event.actor.user)}
    tail = WITH_PROCESS_AND_USER if event.actor.user else WITH_PROCESS
    return Markup(escape(catalogue.gettext(tail))) % by  # noqa: S704


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)
