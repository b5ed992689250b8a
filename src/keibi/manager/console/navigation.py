"""What stands in the navigation and in the palette: only pages that exist, and only those that the visitor may see."""

from dataclasses import dataclass

from keibi.manager.console.language import N_


@dataclass(frozen=True)
class Entry:
    """One page that can be gone to by name."""

    address: str
    icon: str
    title: str
    permission: str | None = None


NAVIGATION = (
    Entry("/", "layout-dashboard", N_("Overview")),
    Entry("/computers", "server", N_("Computers"), "computers.view"),
    Entry("/events", "list-search", N_("Events"), "events.view"),
    Entry("/policies", "binary-tree", N_("Policies"), "policies.view"),
    Entry("/rules", "checklist", N_("Rules"), "rules.view"),
    Entry("/content", "package", N_("Content"), "rules.view"),
    Entry("/administration", "settings", N_("Administration")),
)
EVENT_PAGES = (
    Entry("/events", "list-search", N_("All events"), "events.view"),
    Entry("/events/malware", "shield-check", N_("Anti-malware"), "events.view"),
    Entry("/events/software", "apps", N_("Software changes"), "events.view"),
)
"""The pages of single modules below the events; each has tabs of its own."""
ADMINISTRATION = (
    Entry("/administration/users", "users", N_("Users"), "users.view"),
    Entry("/administration/roles", "id-badge-2", N_("Roles"), "users.view"),
    Entry("/administration/tokens", "ticket", N_("Enrolment tokens"), "tokens.manage"),
    Entry("/administration/api-keys", "key", N_("API keys"), "api_keys.manage"),
    Entry("/administration/customers", "building", N_("Customers"), "tenants.manage"),
    Entry("/administration/retention", "clock", N_("Event retention"), "events.view"),
    Entry("/administration/audit", "history", N_("Audit trail"), "audit.view"),
)
COMMANDS = (
    Entry("/administration/tokens#new", "plus", N_("Add a computer"), "tokens.manage"),
    Entry(
        "/events?severity=high&period=24h", "alert-triangle", N_("Events of high severity in the last 24 hours"), "events.view"
    ),
    Entry("/events?live=on", "activity", N_("Watch events as they arrive"), "events.view"),
    Entry("/rules/new", "pencil", N_("Write a rule"), "rules.edit"),
    Entry("/policies/import", "file", N_("Import policies"), "policies.edit"),
    Entry("/content#new", "package", N_("Import patterns"), "patterns.manage"),
    Entry("/account", "user-circle", N_("Your account"), None),
)
