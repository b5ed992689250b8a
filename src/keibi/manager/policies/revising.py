"""A policy as it would be after a change, and what differs in itself. Pure."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from keibi.manager.policies.editing import checked_description, checked_name
from keibi.manager.policies.forest import Branch, Forest, read_overrides
from keibi.manager.policies.model import PATH_SEPARATOR, DifferenceLine
from keibi.manager.policies.overrides import PolicyChange, applied
from keibi.manager.policies.tables import PolicyVersionRecord
from keibi.manager.rules.model import Words


def changed(branch: Branch, change: PolicyChange) -> Branch:
    """Return a policy with a change made.

    Raises:
        InputError: a bad name or description.
    """
    return replace(
        branch,
        name=branch.name if change.name is msgspec.UNSET else checked_name(change.name),
        description=branch.description if change.description is msgspec.UNSET else checked_description(change.description),
        overrides=applied(branch.overrides, change),
    )


def as_of(branch: Branch, version: PolicyVersionRecord) -> Branch:
    """Return a policy as an older version of it was, at its present place."""
    return replace(branch, name=version.name, description=version.description, overrides=read_overrides(version.overrides))


def own_lines(before: Forest, after: Forest, branch: Branch) -> list[DifferenceLine]:
    """Return what differs in the policy itself: its name, description and place."""
    old = before.branches[branch.policy_id]
    lines = []
    if old.name != branch.name:
        words = Words(f"The policy {old.name} is called {branch.name}.", f"ポリシー名：{old.name} → {branch.name}")
        lines.append(DifferenceLine(None, "policy", "name", old.name, branch.name, words))
    if old.description != branch.description:
        words = Words("The description is another.", "説明を変更します。")
        lines.append(DifferenceLine(None, "policy", "description", old.description, branch.description, words))
    if old.parent_id != branch.parent_id:
        places = [forest.path(place) if place else "" for forest, place in ((before, old.parent_id), (after, branch.parent_id))]
        words = Words(
            f"It moves from {places[0] or 'the top'} to {places[1] or 'the top'}.",
            f"移動：{places[0] or '最上位'} → {places[1] or '最上位'}",
        )
        lines.append(DifferenceLine(None, "policy", "parent", places[0], places[1], words))
    return lines


def old_path(forest: Forest, row: PolicyVersionRecord) -> str:
    """Return the path that a version had, as far as its parent still exists."""
    if row.parent_id is not None and row.parent_id in forest.branches:
        return f"{forest.path(row.parent_id)}{PATH_SEPARATOR}{row.name}"
    return row.name


def listed(names: Sequence[str]) -> str:
    """Return names for a message, not too many of them."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
