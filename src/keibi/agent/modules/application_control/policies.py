"""From what the manager sends to what is in force, and what that means for the gates."""

import fnmatch
import os
from dataclasses import dataclass
from functools import cached_property

import msgspec

from keibi.agent.gate import judging
from keibi.agent.gate.judging import Terms
from keibi.agent.linux import software
from keibi.contract.names import ModuleId
from keibi.contract.policy import ModulePolicy, ModuleState
from keibi.errors import InputError
from keibi.protection.application_control.engine import CompiledRules, compile_rules
from keibi.protection.application_control.rules import Rule
from keibi.protection.application_control.settings import ApplicationControlSettings, InlineCode, Unrecognised
from keibi.protection.gate_settings import OnTimeout
from keibi.protection.patterns import Patterns


@dataclass(frozen=True)
class Policy:
    """What is in force.

    `known` judges by the inventory, `learning` while there is none yet: then only rules can block. `proof` judges in private
    gates, by the rules that are for proofs too.
    """

    generation: int
    state: ModuleState
    settings: ApplicationControlSettings
    known: CompiledRules
    learning: CompiledRules
    proof: CompiledRules
    interpreters: Patterns
    readers: Patterns
    excluded: tuple[bytes, ...]  # with a slash at the end

    @property
    def prevents(self) -> bool:
        """Whether what is not recognised is stopped."""
        return self.state is ModuleState.PREVENT

    @cached_property
    def looks_at_inline(self) -> bool:
        """Whether the command lines of interpreters matter."""
        return self.known.blocks_inline or self.settings.inline_code is not InlineCode.ALLOW

    def is_excluded(self, path: bytes) -> bool:
        """Whether the policy leaves the path alone."""
        return path.startswith(self.excluded)


def read_policy(generation: int, policy: ModulePolicy) -> Policy:
    """Return what a module policy says.

    Raises:
        InputError: a pattern or a directory is wrong.
        msgspec.ValidationError: settings or a rule have another shape, or a field that this agent does not know.
    """
    settings = msgspec.json.decode(policy.settings, type=ApplicationControlSettings)
    all_rules = that_fit([msgspec.json.decode(rule.body, type=Rule) for rule in policy.rules])
    rules = [rule for rule in all_rules if not rule.is_for_proofs]
    for name in ("places", "excluded_directories", "trusted_updaters", "trusted_virtual_environments"):
        for path in getattr(settings, name):
            if not path.startswith("/"):
                raise InputError("path_not_absolute", f"{path!r} is not absolute", where=name, hint="begin with /")
    trusting = msgspec.structs.replace(settings, unrecognised=Unrecognised.ALLOW)
    return Policy(
        generation,
        policy.state,
        settings,
        compile_rules(rules, settings),
        compile_rules(rules, trusting),
        compile_rules(all_rules, settings),
        Patterns(settings.interpreters),
        Patterns(settings.trusted_readers),
        tuple(os.fsencode(path).rstrip(b"/") + b"/" for path in settings.excluded_directories),
    )


def that_fit(rules: list[Rule]) -> list[Rule]:
    """Leave out rules for software that is not installed here; the manager knows the system, not what is on it."""
    if not any(rule.applies_to.software for rule in rules):
        return rules
    installed = list(software.collect())
    return [
        rule
        for rule in rules
        if not rule.applies_to.software or any(fnmatch.filter(installed, pattern) for pattern in rule.applies_to.software)
    ]


def terms_of(policy: Policy | None, *, is_suspended: bool) -> Terms:
    """Return what gates shall do. `is_suspended`: unlocked by hand, so nothing is held."""
    module = str(ModuleId.APPLICATION_CONTROL)
    if policy is None or policy.state is ModuleState.OFF:
        return Terms(module=module)
    settings = policy.settings
    holds = not is_suspended and (policy.prevents or policy.known.has_block_rules)
    events = [judging.EXEC]
    if holds and (settings.control_libraries or settings.control_scripts):
        events.append(judging.OPEN)
    events.append(judging.WRITTEN)
    return Terms(
        module=module,
        generation=policy.generation,
        mode=judging.PREVENT if holds else judging.WATCH,
        events=tuple(events),
        files=judging.SOFTWARE,
        suffixes=settings.script_suffixes,
        by_asker=True,
        deadline_milliseconds=settings.deadline_milliseconds,
        on_timeout=judging.DENY if settings.on_timeout is OnTimeout.DENY else judging.ALLOW,
        closed_at_most_seconds=settings.closed_at_most_seconds,
        places=settings.places,
        excluded=tuple(path.rstrip("/") for path in settings.excluded_directories),
        guard=judging.GUARD_ENFORCE if policy.prevents and not is_suspended else judging.GUARD_REPORT,
        protects_agent=settings.protect_agent,
    )
