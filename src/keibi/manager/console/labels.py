"""Words for the values of closed sets. A value without a word is shown as it is, so that a newer agent never breaks a page."""

from collections.abc import Mapping
from types import MappingProxyType

from keibi.contract.names import ModuleId
from keibi.manager.console.language import N_, Catalogue
from keibi.protection.catalog import MODULES

LABELS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "severity": {
            "low": N_("Low"),
            "medium": N_("Medium"),
            "high": N_("High"),
            "critical": N_("Critical"),
        },
        "health": {
            "inactive": N_("Inactive"),
            "starting": N_("Starting"),
            "active": N_("Active"),
            "warning": N_("Warning"),
            "error": N_("Error"),
            "not_supported": N_("Not supported"),
        },
        "state": {
            "off": N_("Off"),
            "on": N_("On"),
            "real-time": N_("On, real-time"),
            "detect": N_("Detect mode"),
            "prevent": N_("Prevent mode"),
        },
        "connection": {
            "online": N_("Online"),
            "offline": N_("Offline"),
            "never": N_("Never connected"),
            "disabled": N_("Disabled"),
        },
        "entity": {
            "file": N_("File"),
            "directory": N_("Directory"),
            "process": N_("Process"),
            "port": N_("Listening port"),
            "user": N_("User"),
            "group": N_("Group"),
            "service": N_("Service"),
            "software": N_("Software"),
            "registry_key": N_("Registry key"),
            "registry_value": N_("Registry value"),
        },
        "change": {
            "created": N_("Created"),
            "updated": N_("Changed"),
            "deleted": N_("Deleted"),
            "renamed": N_("Renamed"),
        },
        "action": {
            "detected": N_("Detected"),
            "blocked": N_("Blocked"),
            "restored": N_("Restored"),
            "quarantined": N_("Quarantined"),
            "deleted": N_("Deleted"),
            "cleaned": N_("Cleaned"),
            "passed": N_("Left in place"),
            "stopped": N_("Stopped"),
        },
        "source": {
            "real-time": N_("real-time monitoring"),
            "manual": N_("a manual scan"),
            "scheduled": N_("a scheduled scan"),
            "start": N_("the look at start: it changed while the agent was down"),
            "recovery": N_("a rescan after an overflow"),
        },
        "command": {
            "scan": N_("Scan"),
            "rebuild_baseline": N_("Rebuild the baseline"),
            "preview_restore": N_("Preview of a restore"),
            "restore": N_("Restore"),
            "decide_drift": N_("Decide on drifts"),
            "list_baseline": N_("List the baseline"),
            "compare_baseline": N_("Compare baselines"),
            "diagnose": N_("Diagnose"),
            "pause_scan": N_("Pause a scan"),
            "resume_scan": N_("Resume a scan"),
            "cancel_scan": N_("Cancel a scan"),
            "list_quarantine": N_("List the quarantine"),
            "restore_quarantined": N_("Restore from quarantine"),
            "delete_quarantined": N_("Delete from quarantine"),
            "fetch_quarantined": N_("Fetch from quarantine"),
        },
        "command_state": {
            "pending": N_("Waiting"),
            "sent": N_("Sent"),
            "running": N_("Running"),
            "done": N_("Done"),
            "failed": N_("Failed"),
            "refused": N_("Refused"),
            "expired": N_("Expired"),
        },
        "attribute": {
            "permissions": N_("Permissions"),
            "owner": N_("Owner"),
            "group": N_("Group"),
            "size": N_("Size"),
            "modified_at": N_("Modified"),
            "changed_at": N_("Attributes changed"),
            "accessed_at": N_("Accessed"),
            "inode": N_("Inode"),
            "device": N_("Device"),
            "link_count": N_("Hard links"),
            "contents": N_("Content fingerprint"),
            "link_target": N_("Link target"),
            "xattrs": N_("Extended attributes"),
            "acl": N_("Access list"),
            "capabilities": N_("Capabilities"),
            "flags": N_("Flags"),
            "type": N_("Type"),
            "executable": N_("Executable"),
            "user": N_("User"),
            "parent": N_("Parent process"),
            "command_line": N_("Command line"),
            "pid": N_("Process number"),
            "started_at": N_("Started"),
            "process": N_("Process"),
            "uid": N_("User number"),
            "gid": N_("Group number"),
            "home": N_("Home directory"),
            "shell": N_("Shell"),
            "full_name": N_("Full name"),
            "groups": N_("Groups"),
            "is_locked": N_("Locked"),
            "password_changed_on": N_("Password changed"),
            "password_fingerprint": N_("Password fingerprint"),
            "members": N_("Members"),
            "path": N_("Path"),
            "state": N_("State"),
            "start_type": N_("Start type"),
            "command": N_("Command"),
            "version": N_("Version"),
            "architecture": N_("Architecture"),
            "vendor": N_("Vendor"),
            "status": N_("Status"),
            "value_count": N_("Values"),
            "subkey_count": N_("Subkeys"),
            "security_hash": N_("Security descriptor"),
            "value_type": N_("Value type"),
        },
        "metric": {
            "entities_count": N_("Watched things"),
            "last_scan_seconds": N_("Length of the last scan"),
            "last_scan_at": N_("Last scan"),
            "baseline_version": N_("Baseline version"),
            "baseline_at": N_("Baseline made"),
            "drifts_waiting_count": N_("Open drifts"),
            "overflows_count": N_("Overflows recovered"),
            "content_store_bytes": N_("Kept content"),
            "worker_memory_bytes": N_("Memory of its process"),
            "worker_restarts_count": N_("Restarts of its process"),
            "outbox_waiting_count": N_("Events to hand over"),
            "next_scan_at": N_("Next scan"),
        },
        "permission": {
            "computers.view": N_("See computers"),
            "computers.manage": N_("Manage computers and groups"),
            "tokens.manage": N_("Make enrolment tokens"),
            "policies.view": N_("See policies"),
            "policies.edit": N_("Change policies"),
            "rules.view": N_("See rules"),
            "rules.edit": N_("Write own rules"),
            "events.view": N_("See events"),
            "events.tag": N_("Tag events"),
            "commands.run": N_("Run scans and diagnoses"),
            "restore.run": N_("Restore files"),
            "drift.decide": N_("Approve and reject drifts"),
            "quarantine.manage": N_("Restore and delete quarantined files"),
            "quarantine.download": N_("Download quarantined files"),
            "software.decide": N_("Allow and block software"),
            "unlock.make": N_("Make unlock codes"),
            "users.view": N_("See users"),
            "users.manage": N_("Manage users"),
            "roles.manage": N_("Manage roles"),
            "api_keys.manage": N_("Manage API keys"),
            "audit.view": N_("See the audit trail"),
            "settings.edit": N_("Change settings"),
            "tenants.manage": N_("Manage customers"),
        },
        "role": {
            "administrator": N_("Administrator"),
            "operator": N_("Operator"),
            "auditor": N_("Auditor"),
            "provider": N_("Provider"),
        },
        "role_help": {
            "administrator": N_("Everything of one customer."),
            "operator": N_("Daily work: no users, roles, keys or settings, and no download of malware."),
            "auditor": N_("Sees everything, changes nothing."),
            "provider": N_("Everything, for all customers, customers included."),
        },
        "alarm": {
            "key_on_other_machine": N_("Another machine used its key"),
            "machine_with_other_key": N_("The same machine enrolled with another key"),
            "machine_id_changed": N_("Its machine id changed"),
        },
        "version_kind": {
            "build": N_("First baseline"),
            "scan": N_("Scan"),
            "real_time": N_("Real-time monitoring"),
            "rebuild": N_("Rebuild"),
            "approve": N_("Approval"),
        },
        "unit": {"days": N_("days"), "bytes": N_("bytes"), "seconds": N_("seconds")},
        "boolean": {"true": N_("Yes"), "false": N_("No")},
        "decision": {"approve": N_("Approve"), "reject": N_("Reject")},
        "choice": {
            "rolling": N_("Rolling: a reported difference becomes the baseline"),
            "approval": N_("Approval: a person decides on each difference"),
            "sha256": N_("SHA-256"),
            "blake3": N_("BLAKE3"),
        },
    }
)


def label(catalogue: Catalogue, group: str, value: object) -> str:
    """Return the word for `value` of the set `group` in the reader's language."""
    if isinstance(value, bool):
        value = "true" if value else "false"
    text = LABELS.get(group, {}).get(str(value))
    return catalogue.gettext(text) if text else str(value)


def module_title(catalogue: Catalogue, module: str) -> str:
    """Return the title of a module; those of the agent itself have none in the catalogue."""
    for built in MODULES:
        if built.module == module:
            return built.title.in_language(catalogue.language)
    return {str(known): known.value.replace("_", " ").capitalize() for known in ModuleId}.get(module, module)
