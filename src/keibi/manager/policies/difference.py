"""What differs between two resolved levels, as sentences in both languages. Pure."""

from collections.abc import Mapping
from typing import Any

from keibi.contract.names import ModuleId
from keibi.manager.policies.model import DifferenceLine, Valued
from keibi.manager.policies.resolution import Resolved, ResolvedModule, ResolvedRule
from keibi.manager.policies.settings_help import help_of
from keibi.manager.rules.model import CatalogRule, Words
from keibi.protection.base import Module

_STATE_WORDS = {
    "off": Words("off", "オフ"),
    "on": Words("on", "オン"),
    "real-time": Words("real-time", "リアルタイム"),
    "detect": Words("detect", "検出"),
    "prevent": Words("prevent", "防御"),
}
_SEVERITY_WORDS = {
    "low": Words("low", "低"),
    "medium": Words("medium", "中"),
    "high": Words("high", "高"),
    "critical": Words("critical", "重大"),
}
_UNITS_JA = {
    "days": "日",
    "bytes": "バイト",
    "seconds": "秒",
    "hours": "時間",
    "levels": "階層",
    "files": "ファイル",
    "processes": "プロセス",
}
_MAX_SHOWN_CHARACTERS = 200


def differences(
    before: Resolved, after: Resolved, modules: Mapping[ModuleId, Module], catalog: Mapping[str, CatalogRule]
) -> list[DifferenceLine]:
    """Return one line for each value that differs, in the order of the page that shows them."""
    lines = []
    for module_id, module in modules.items():
        one, other = before.modules[module_id], after.modules[module_id]
        lines += _of_state(module, one.state, other.state)
        lines += _of_settings(module, one, other)
        for rule_id in sorted(one.rules.keys() | other.rules.keys()):
            lines += _of_rule(module, rule_id, catalog.get(rule_id), one.rules.get(rule_id), other.rules.get(rule_id))
    if before.heartbeat_seconds.value != after.heartbeat_seconds.value:
        one_s, other_s = before.heartbeat_seconds.value, after.heartbeat_seconds.value
        sentence = Words(
            f"Agents report every {other_s} seconds instead of {one_s}.", f"エージェントの報告間隔：{one_s}秒 → {other_s}秒"
        )
        lines.append(DifferenceLine(None, "heartbeat", "heartbeat_seconds", one_s, other_s, sentence))
    return lines


def _of_state(module: Module, before: Valued[Any], after: Valued[Any]) -> list[DifferenceLine]:
    if before.value == after.value and before.is_overridden == after.is_overridden:
        return []
    one, other = _STATE_WORDS[before.value], _STATE_WORDS[after.value]
    sentence = _changed(module.title.en, module.title.ja or module.title.en, one, other, before, after)
    return [DifferenceLine(module.module, "state", "state", str(before.value), str(after.value), sentence)]


def _of_settings(module: Module, before: ResolvedModule, after: ResolvedModule) -> list[DifferenceLine]:
    lines = []
    helps = help_of(module)
    for name, one in before.settings.items():
        other = after.settings[name]
        if one.value == other.value and one.is_overridden == other.is_overridden:
            continue
        title, unit = helps[name].title, helps[name].unit
        shown = _shown(one.value, unit), _shown(other.value, unit)
        sentence = _changed(title.en, title.in_language("ja"), *shown, one, other)
        lines.append(DifferenceLine(module.module, "setting", name, one.value, other.value, sentence))
    return lines


def _of_rule(
    module: Module, rule_id: str, rule: CatalogRule | None, before: ResolvedRule | None, after: ResolvedRule | None
) -> list[DifferenceLine]:
    title = Words.of(rule.rule.title) if rule else Words(rule_id)
    name_en, name_ja = f"Rule “{title.en}”", f"ルール「{title.in_language('ja')}」"
    lines = []
    one: Valued[Any]
    other: Valued[Any]
    for field, default, words_en, words_ja in (
        ("is_assigned", False, "", ""),
        ("severity", rule.rule.severity if rule else None, "severity", "重要度"),
        ("is_real_time", getattr(rule.rule, "is_real_time", None) if rule else None, "real-time", "リアルタイム"),
        ("added_excludes", [], "added excludes", "除外の追加"),
    ):
        silent = Valued[Any](None, None, "", False, None)
        one = getattr(before, field) if before else silent
        other = getattr(after, field) if after else silent
        value_before = default if one.value is None else one.value
        value_after = default if other.value is None else other.value
        if value_before == value_after and one.is_overridden == other.is_overridden:
            continue
        if field == "is_assigned":
            sentence = _assignment(name_en, name_ja, bool(value_before), bool(value_after), other)
        else:
            sentence = _changed(
                f"{name_en}: {words_en}", f"{name_ja}の{words_ja}", _shown(value_before), _shown(value_after), one, other
            )
        lines.append(DifferenceLine(module.module, "rule", f"{rule_id}.{field}", value_before, value_after, sentence))
    return lines


def _assignment(name_en: str, name_ja: str, before: bool, after: bool, now: Valued[Any]) -> Words:
    if before != after:
        verb = ("is assigned", "を割り当てます") if after else ("is no longer assigned", "の割り当てを解除します")
        return Words(f"{name_en} {verb[0]}.", f"{name_ja}{verb[1]}。")
    if now.is_overridden:
        kept = ("stays assigned", "の割り当て") if after else ("stays unassigned", "の割り当てなし")
        return Words(f"{name_en} {kept[0]}, and is said here from now on.", f"{name_ja}{kept[1]}をここでオーバーライドします。")
    kept = ("stays assigned", "の割り当て") if after else ("stays unassigned", "の割り当てなし")
    return Words(f"{name_en} {kept[0]}, and is inherited from now on.", f"{name_ja}{kept[1]}を継承に戻します。")


def _changed(name_en: str, name_ja: str, one: Words, other: Words, before: Valued[Any], after: Valued[Any]) -> Words:
    if before.value != after.value:
        note_en = note_ja = ""
        if before.is_overridden and not after.is_overridden:
            note_en, note_ja = " (inherited again)", "（継承に戻します）"
        return Words(f"{name_en}: {one.en} → {other.en}{note_en}.", f"{name_ja}：{one.ja} → {other.ja}{note_ja}")
    if after.is_overridden:
        return Words(
            f"{name_en} stays {other.en}, and is said here from now on.",
            f"{name_ja}：{other.ja}のまま、ここでオーバーライドします",
        )
    return Words(f"{name_en} stays {other.en}, and is inherited from now on.", f"{name_ja}：{other.ja}のまま、継承に戻します")


def _shown(value: Any, unit: str = "") -> Words:
    if value is True or value is False:
        return Words("on", "オン") if value else Words("off", "オフ")
    if isinstance(value, str) and value in _SEVERITY_WORDS:
        return _SEVERITY_WORDS[value]
    if value in ("", None, [], {}):
        return Words("(empty)", "（なし）")
    if isinstance(value, list):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, dict):
        text = ", ".join(f"{name}={item}" for name, item in value.items())
    else:
        text = str(value)
    if len(text) > _MAX_SHOWN_CHARACTERS:
        text = text[:_MAX_SHOWN_CHARACTERS] + "…"
    return Words(f"{text} {unit}".strip(), f"{text} {_UNITS_JA.get(unit, unit)}".strip())
