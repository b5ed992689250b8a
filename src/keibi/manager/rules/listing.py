"""Rules as rows of a list, and which of them a filter wants. Pure."""

from keibi.contract.names import Severity
from keibi.manager.rules.model import CatalogRule, RuleDetail, RuleFilter, RuleRow, RuleUse, Words, as_json
from keibi.manager.rules.os_families import fits


def row_of(found: CatalogRule, is_assigned: bool) -> RuleRow:
    """Return the rule as it stands in a list."""
    rule = found.rule
    return RuleRow(
        rule_id=rule.id,
        module=found.module,
        source=found.source,
        tenant_id=found.tenant_id,
        version=rule.version,
        title=Words.of(rule.title),
        description=Words.of(rule.description),
        severity=rule.severity,
        entity_types=found.entity_types,
        is_real_time=bool(getattr(rule, "is_real_time", False)),
        os=found.os,
        techniques=list(rule.techniques),
        is_assigned=is_assigned,
        changed_at=found.changed_at,
        changed_by=found.changed_by,
    )


def detail_of(found: CatalogRule, uses: list[RuleUse]) -> RuleDetail:
    """Return the rule with everything about it."""
    row = row_of(found, any(use.is_assigned for use in uses))
    return RuleDetail(
        **row.__dict__,
        text=found.text,
        references=list(found.rule.references),
        software=list(found.rule.applies_to.software),
        uses=uses,
        body=as_json(found.rule),
    )


def wanted(found: CatalogRule, filters: RuleFilter, is_assigned: bool) -> bool:
    """Whether the filter lets the rule through."""
    rule = found.rule
    severity: Severity = rule.severity
    return (
        (filters.module is None or found.module is filters.module)
        and (filters.source is None or found.source is filters.source)
        and (filters.severity_at_least is None or severity.rank >= filters.severity_at_least.rank)
        and (not filters.os or fits(found.os, filters.os))
        and (not filters.technique or any(_is_technique(name, filters.technique) for name in rule.techniques))
        and (not filters.entity_type or filters.entity_type in found.entity_types)
        and (filters.is_assigned is None or filters.is_assigned is is_assigned)
        and _has_words(found, filters.text)
    )


def _is_technique(name: str, wanted_name: str) -> bool:
    """T1543 finds its sub-technique T1543.002 too."""
    return name.upper() == wanted_name.upper() or name.upper().startswith(wanted_name.upper() + ".")


def _has_words(found: CatalogRule, text: str) -> bool:
    if not text.strip():
        return True
    rule = found.rule
    texts = (rule.id, rule.title.en, rule.title.ja, rule.description.en, rule.description.ja, *rule.techniques)
    haystack = "\n".join(texts).casefold()
    return all(word in haystack for word in text.casefold().split())
