"""What a module policy means for gates and verdicts."""

import pytest

from keibi.agent.gate import judging
from keibi.agent.modules.application_control.policies import Policy, read_policy, terms_of
from keibi.contract.policy import ModuleState
from keibi.protection.application_control.rules import HashEntry, RuleAction
from tests.system.application_control_worker import module_policy, ruleset

CONTENT = "ab" * 32


def policy_with(state: ModuleState, *, is_for_proofs: bool) -> Policy:
    rule = ruleset(RuleAction.BLOCK, HashEntry(CONTENT), is_for_proofs=is_for_proofs)
    return read_policy(1, module_policy((rule,), state))


@pytest.mark.parametrize(("is_for_proofs", "mode"), [(False, judging.PREVENT), (True, judging.WATCH)])
def test_a_block_rule_has_programs_held_unless_it_is_for_proofs(is_for_proofs, mode):
    policy = policy_with(ModuleState.DETECT, is_for_proofs=is_for_proofs)
    assert terms_of(policy, is_suspended=False).mode == mode


def test_a_rule_for_proofs_judges_in_private_gates_alone():
    policy = policy_with(ModuleState.PREVENT, is_for_proofs=True)
    assert CONTENT not in policy.known.hashes
    assert CONTENT not in policy.learning.hashes
    assert [rule.id for rule, _ in policy.proof.hashes[CONTENT]] == ["ac-test"]
