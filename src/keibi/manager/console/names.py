"""Names for the ids that stand in events and lists. What the visitor may not see keeps its id."""

from collections.abc import Collection
from typing import Any

from keibi.manager.computers.model import ComputerFilter
from keibi.manager.console.visit import Visit
from keibi.manager.rules.model import RuleFilter

MAX_CHOICES = 500


def computer_names(visit: Visit, computer_ids: Collection[str]) -> dict[str, str]:
    """Return the display names of computers."""
    if not computer_ids or not visit.may("computers.view"):
        return {}
    page = visit.services.computers.list(
        visit.principal, ComputerFilter(computer_ids=tuple(sorted(computer_ids))), limit=min(1000, max(1, len(computer_ids)))
    )
    return {computer.computer_id: computer.display_name for computer in page.items}


def computer_choices(visit: Visit) -> list[dict[str, Any]]:
    """Return the computers to choose from in a filter, by name."""
    if not visit.may("computers.view"):
        return []
    page = visit.services.computers.list(visit.principal, ComputerFilter(), limit=MAX_CHOICES)
    return [{"computer_id": computer.computer_id, "name": computer.display_name} for computer in page.items]


def rule_titles(visit: Visit, rule_ids: Collection[str]) -> dict[str, str]:
    """Return the titles of rules in the reader's language."""
    if not rule_ids or not visit.may("rules.view"):
        return {}
    page = visit.services.rules.list(visit.principal, RuleFilter(), limit=1000)
    return {row.rule_id: row.title.in_language(visit.language) for row in page.items if row.rule_id in rule_ids}


def policy_paths(visit: Visit) -> dict[str, str]:
    """Return the paths of all policies ("Base > Linux")."""
    if not visit.may("policies.view"):
        return {}
    return {policy.policy_id: policy.path for policy in visit.services.policies.tree(visit.principal)}


def policy_choices(visit: Visit) -> list[tuple[str, str]]:
    """Return the policies to assign, with their customer where several are in sight."""
    if not visit.may("policies.view"):
        return []
    return [
        (policy.policy_id, " · ".join(part for part in (visit.customer_of(policy.tenant_id), policy.path) if part))
        for policy in visit.services.policies.tree(visit.principal)
    ]


def group_paths(visit: Visit) -> dict[str, str]:
    """Return the paths of all groups ("Tokyo / Web")."""
    if not visit.may("computers.view"):
        return {}
    return {group.group_id: group.path for group in visit.services.computers.groups.tree(visit.principal)}
