"""Sixty customers and more: their software is one query, and reading what holds for them takes a few statements."""

from sqlalchemy import event

from keibi.contract.names import ModuleId, Severity, new_id
from keibi.manager.database import Scope
from keibi.manager.events.reach import Reach
from keibi.manager.rules.model import CatalogRule, RuleSource
from keibi.manager.software.changes import ChangeReader
from keibi.manager.software.known import KnownSoftware, TenantRulesets
from keibi.manager.software.model import ChangeFilter, Standing
from keibi.protection.application_control.rules import HashEntry, Rule, RuleAction
from keibi.protection.base import Text
from tests.unit.manager.software.making import a_change, sha256_of, store_events

MODULE = ModuleId.APPLICATION_CONTROL


def ruleset(rule_id, action, *names, tenant_id=None):
    entries = [HashEntry(sha256=sha256_of(name)) for name in names]
    rule = Rule(rule_id, 1, Text(rule_id), Text(""), Severity.LOW, action, entries)
    return CatalogRule(rule=rule, module=MODULE, source=RuleSource.OWN, text="", tenant_id=tenant_id)


def test_what_is_decided_of_one_customer_holds_for_no_other(sqlite_world):
    """Shipped rulesets, own ones, and computers that have others than their customer's, all in one query."""
    store = sqlite_world.store
    first, second, third = (new_id() for _ in range(3))
    usual, odd = {one: new_id() for one in (first, second, third)}, {one: new_id() for one in (first, second, third)}
    everywhere = ruleset("ac-everywhere", RuleAction.BLOCK, "miner")
    own = ruleset("ac-own", RuleAction.ALLOW, "tool", "miner", tenant_id=first)
    other = ruleset("ac-own", RuleAction.BLOCK, "tool", tenant_id=second)
    rulesets = [
        TenantRulesets(first, (everywhere, own), (((everywhere,), frozenset({odd[first]})),)),
        TenantRulesets(second, (everywhere,), (((everywhere, other), frozenset({odd[second]})),)),
        TenantRulesets(third, ()),
    ]
    for tenant_id in (first, second, third):
        for computer_id in (usual[tenant_id], odd[tenant_id]):
            store_events(store, tenant_id, computer_id, a_change("/m", name="miner"), a_change("/t", name="tool"))
    reader = ChangeReader(store)
    page = reader.page(Reach(frozenset({first, second, third})), rulesets, ChangeFilter(), "place", None, 100)
    kind = {**dict.fromkeys(usual.values(), "usual"), **dict.fromkeys(odd.values(), "odd")}
    found = {(one.tenant_id, kind[one.computer_ids[0]], one.paths[0]): one.standing for one in page.items}
    blocked, allowed, nobody = Standing.BLOCKED, Standing.ALLOWED, Standing.OPEN
    assert found == {
        (first, "usual", "/m"): blocked, (first, "usual", "/t"): allowed,
        (first, "odd", "/m"): blocked, (first, "odd", "/t"): nobody,
        (second, "usual", "/m"): blocked, (second, "usual", "/t"): nobody,
        (second, "odd", "/m"): blocked, (second, "odd", "/t"): blocked,
        (third, "usual", "/m"): nobody, (third, "usual", "/t"): nobody,
        (third, "odd", "/m"): nobody, (third, "odd", "/t"): nobody,
    }  # fmt: skip


def test_five_hundred_customers_are_one_query(sqlite_world):
    world = sqlite_world
    with world.world.database.session(Scope.system("test"), writes=False) as session:
        shipped = tuple(rule for rule in world.world.rules.catalog(session, world.tenant_id).values() if rule.module is MODULE)
    assert shipped
    ids = [new_id() for _ in range(500)]
    rulesets = [
        TenantRulesets(one, (*shipped, ruleset("ac-own", RuleAction.BLOCK, f"own of {one}", tenant_id=one))) for one in ids
    ]
    store_events(world.store, ids[7], new_id(), a_change("/a", name=f"own of {ids[7]}"), a_change("/b", name=f"own of {ids[8]}"))
    reader = ChangeReader(world.store)
    page = reader.page(Reach(frozenset(ids)), rulesets, ChangeFilter(), "hash", None, 50)
    assert {one.paths[0]: one.standing for one in page.items} == {"/a": Standing.BLOCKED, "/b": Standing.OPEN}
    known = KnownSoftware()
    one_more = len(known.expression(rulesets)) - len(KnownSoftware().expression(rulesets[:-1]))
    assert one_more < 200  # characters, of the 262,144 that a query may have


def test_a_customer_more_costs_no_statement_more(world):
    database = world.world.database
    counted = []

    def count(*told):
        counted.append(told[2])

    tenants = [world.tenant_id, world.world.other_tenant_id]
    event.listen(database.engine, "before_cursor_execute", count)
    try:
        for tenant_ids in (tenants[:1], tenants):
            with database.session(Scope(frozenset(tenants), "test"), writes=False) as session:
                world.world.policies.rulesets.computers_by_tenant(session, tenant_ids, MODULE)
            counted.append("")
    finally:
        event.remove(database.engine, "before_cursor_execute", count)
    one, both = counted.index(""), len(counted) - counted.index("") - 2
    assert one == both
