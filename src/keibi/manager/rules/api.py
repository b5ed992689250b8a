"""REST: the rule catalogue under /api/v1/rules."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, status
from pydantic import BaseModel, ConfigDict, Field

from keibi.contract.names import ModuleId, Severity
from keibi.manager.access.api import current_principal
from keibi.manager.access.model import Principal
from keibi.manager.paging import DEFAULT_LIMIT, MAX_LIMIT
from keibi.manager.rules.model import (
    RuleComparison,
    RuleDetail,
    RuleFilter,
    RuleRow,
    RuleSource,
    RuleVersion,
    Trial,
    Validation,
)
from keibi.manager.rules.service import RuleService
from keibi.protection.integrity_monitoring.rules import EntityType

router = APIRouter(prefix="/api/v1/rules", tags=["rules"])


def rule_service(request: Request) -> RuleService:
    """Return the service of the running manager."""
    service: RuleService = request.app.state.services.rules
    return service


Asker = Annotated[Principal, Depends(current_principal)]
Rules = Annotated[RuleService, Depends(rule_service)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RuleText(_Body):
    """A rule as YAML."""

    module: ModuleId = ModuleId.INTEGRITY_MONITORING
    text: str = Field(description="The rule as YAML, as in the files under content/.")


class RuleChangeBody(_Body):
    """A new text of an own rule."""

    text: str
    expected_version: int | None = Field(None, description="Refuse if the rule is at another version by now.")


class DuplicateBody(_Body):
    """The id of the copy."""

    new_rule_id: str


class TryBody(_Body):
    """What to try, and the rule to try it on: a kept one by `rule_id`, or one from `text`."""

    change: dict[str, Any] = Field(
        description="As in the samples of the module's rules. Integrity monitoring: type, key, change, before, after. "
        "Anti-malware: name, content, encoding; or sample, the name of one of the rule's. Application control: path, sha256 …"
    )
    rule_id: str = ""
    module: ModuleId = ModuleId.INTEGRITY_MONITORING
    text: str = ""
    variables: dict[str, str] = Field({}, description="Values for ${NAME}; others get a folder of their name.")


@dataclass(frozen=True)
class RulePage:
    """A page of rules."""

    items: list[RuleRow]
    next_cursor: str | None
    total: int | None


@router.get("", summary="List rules")
def list_rules(
    principal: Asker,
    rules: Rules,
    module: ModuleId | None = None,
    source: RuleSource | None = None,
    severity_at_least: Severity | None = None,
    text: Annotated[str, Query(max_length=200)] = "",
    os: Annotated[str, Query(max_length=64, description="ID of os-release: rules that fit it")] = "",
    technique: Annotated[str, Query(max_length=20, description="MITRE ATT&CK id; T1543 finds T1543.002 too")] = "",
    entity_type: EntityType | None = None,
    is_assigned: bool | None = None,
    policy_id: Annotated[str, Query(max_length=32, description="whose assignment is meant; any policy's without it")] = "",
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> RulePage:
    """Return shipped rules and the customer's own, the gravest first."""
    filters = RuleFilter(
        module=module,
        source=source,
        severity_at_least=severity_at_least,
        text=text,
        os=os,
        technique=technique,
        entity_type=entity_type or "",
        is_assigned=is_assigned,
        policy_id=policy_id,
    )
    page = rules.list(principal, filters, cursor, limit)
    return RulePage(list(page.items), page.next_cursor, page.total)


@router.post("", status_code=status.HTTP_201_CREATED, summary="Make an own rule")
def create_rule(principal: Asker, rules: Rules, body: RuleText) -> RuleDetail:
    """Check the text and keep it as an own rule of the customer."""
    return rules.create(principal, body.module, body.text)


@router.post("/validate", summary="Check a rule's text")
def validate_rule(principal: Asker, rules: Rules, body: RuleText) -> Validation:
    """Return what is wrong with a text, with line and column; nothing is kept."""
    principal.require("rules.view")
    return rules.validate(body.module, body.text)


@router.post("/try", summary="Try a rule on a change")
def try_rule(principal: Asker, rules: Rules, body: TryBody) -> Trial:
    """Say whether a rule would report a change, and why."""
    return rules.try_rule(
        principal, body.change, rule_id=body.rule_id, module=body.module, text=body.text, variables=body.variables
    )


@router.get("/{rule_id}", summary="Show a rule")
def get_rule(principal: Asker, rules: Rules, rule_id: str) -> RuleDetail:
    """Return a rule with its text and where it is used."""
    return rules.get(principal, rule_id)


@router.put("/{rule_id}", summary="Change an own rule")
def update_rule(principal: Asker, rules: Rules, rule_id: str, body: RuleChangeBody) -> RuleDetail:
    """Replace the text of an own rule; it becomes the next version and reaches the computers that use it."""
    return rules.update(principal, rule_id, body.text, body.expected_version)


@router.delete("/{rule_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Delete an own rule")
def delete_rule(
    principal: Asker,
    rules: Rules,
    rule_id: str,
    also_unassign: Annotated[bool, Query(description="take it out of the policies that name it")] = False,
) -> None:
    """Delete an own rule. Without `also_unassign` a rule in use is refused, with the places."""
    rules.delete(principal, rule_id, also_unassign=also_unassign)


@router.post("/{rule_id}/duplicate", status_code=status.HTTP_201_CREATED, summary="Duplicate a rule as an own one")
def duplicate_rule(principal: Asker, rules: Rules, rule_id: str, body: DuplicateBody) -> RuleDetail:
    """Make an own rule that is like this one."""
    return rules.duplicate(principal, rule_id, body.new_rule_id)


@router.get("/{rule_id}/versions", summary="List the versions of a rule")
def list_rule_versions(principal: Asker, rules: Rules, rule_id: str) -> list[RuleVersion]:
    """Return every version, newest first, also of a deleted own rule."""
    return list(rules.versions(principal, rule_id))


@router.get("/{rule_id}/compare", summary="Compare two versions of a rule")
def compare_rule_versions(principal: Asker, rules: Rules, rule_id: str, before: int, after: int) -> RuleComparison:
    """Return the unified difference of two versions' texts."""
    return rules.compare(principal, rule_id, before, after)
