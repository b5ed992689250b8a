"""Putting a pattern set into a policy, or taking it out: one step for the console and the command line."""

from keibi.contract.names import ModuleId
from keibi.manager.access.model import Principal
from keibi.manager.policies.model import Applied
from keibi.manager.policies.overrides import ModuleChange, PolicyChange
from keibi.manager.policies.pattern_names import SETTING
from keibi.manager.policies.service import PolicyService


def use_pattern_set(policies: PolicyService, principal: Principal, policy_id: str, name: str, *, is_used: bool) -> Applied:
    """Add a set to those that a policy has, inherited ones included, or take it away.

    Raises:
        AccessError: the principal may not change the policy. InputError: there is no such policy or set.
    """
    shown = policies.effective_settings(principal, policy_id)
    names = list(shown.modules[ModuleId.ANTI_MALWARE].settings[SETTING].value)
    if is_used and name not in names:
        names.append(name)
    elif not is_used:
        names = [one for one in names if one != name]
    change = PolicyChange(modules={ModuleId.ANTI_MALWARE: ModuleChange(settings={SETTING: names})})
    return policies.change(principal, policy_id, change, shown.version)
