"""Writes docs/reference from the code: settings, rules, command line, configuration files and REST API.

`python scripts/reference.py` writes the pages; with `--check` it writes nothing, and its status is 1 when a page is out of date.
What these pages say is said where the code uses it (help of settings, titles of rules, summaries of endpoints), so mend it there.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI

from keibi.agent.config import AgentConfig
from keibi.cli.main import build_parser
from keibi.manager.application import API_ROUTERS
from keibi.manager.config import ManagerConfig
from keibi.manager.console.labels import LABELS
from keibi.manager.console.language import Catalogue, load_catalogue
from keibi.manager.policies.as_code import PolicyFile, read_file
from keibi.manager.policies.model import SettingHelp
from keibi.manager.policies.settings_help import help_of
from keibi.manager.rules.catalog import read_content
from keibi.manager.rules.model import CatalogRule
from keibi.protection.catalog import MODULES

ROOT = pathlib.Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs/reference"
CONTENT = ROOT / "content"
MADE = "<!-- Made by `make docs` from the code: change the code, not this page. -->"


@dataclasses.dataclass(frozen=True)
class Words:
    """What a page says around the generated parts, in one language."""

    language: str
    settings_title: str
    settings_lead: str
    setting_columns: tuple[str, ...]
    rules_title: str
    rules_lead: str
    rule_columns: tuple[str, ...]
    everywhere: str
    yes: str
    no: str
    states: str
    none: str


ENGLISH = Words(
    language="en",
    settings_title="Settings of the protection modules",
    settings_lead="Each can be set in a policy and for a single computer; what is not set is inherited from the policy above.",
    setting_columns=("setting", "name in policy files", "default", "allowed", "what it does"),
    rules_title="Shipped rules",
    rules_lead=(
        "{count} rules. *Default policy* names the shipped policy that assigns the rule; the others are for you to assign. A "
        "rule reports only on computers whose system fits. The YAML of each is in `content/`."
    ),
    rule_columns=("rule", "severity", "what it tells", "watches", "systems", "ATT&CK", "default policy"),
    everywhere="all",
    yes="yes",
    no="no",
    states="States",
    none="none",
)
JAPANESE = Words(
    language="ja",
    settings_title="モジュールの設定",
    settings_lead="いずれもポリシーまたはコンピュータ単位で設定できます。設定していない値は上位のポリシーから継承されます。",
    setting_columns=("設定", "ポリシーファイルでの名前", "既定値", "指定できる値", "説明"),
    rules_title="標準ルール",
    rules_lead=(
        "標準ルールは{count}件です。「既定のポリシー」は、そのルールを割り当てている標準のポリシーです。空欄のルールは必要に応じて割り当ててください。"
        "OSが適合しないコンピュータでは動作しません。各ルールのYAMLは`content/`にあります。"
    ),
    rule_columns=("ルール", "重大度", "内容", "監視対象", "OS", "ATT&CK", "既定のポリシー"),
    everywhere="すべて",
    yes="はい",
    no="いいえ",
    states="状態",
    none="なし",
)


def pages() -> dict[str, str]:
    """Return every page of the reference: file name -> text."""
    return {
        "settings.md": settings_page(ENGLISH),
        "settings.ja.md": settings_page(JAPANESE),
        "rules.md": rules_page(ENGLISH),
        "rules.ja.md": rules_page(JAPANESE),
        "command-line.md": command_line_page(),
        "configuration.md": configuration_page(),
        "rest-api.md": rest_api_page(),
    }


# --- settings


def settings_page(words: Words) -> str:
    """Return what policies can set, module by module."""
    parts = [f"# {words.settings_title}", MADE, words.settings_lead]
    for module in MODULES:
        states = ", ".join(f"`{state}`" for state in module.states)
        default = f"`{module.default_state}`"
        parts += [
            f"## {module.title.in_language(words.language)}",
            module.description.in_language(words.language),
            f"{words.states}: {states} ({words.setting_columns[2]}: {default})",
        ]
        rows = [_setting_row(setting, words) for setting in help_of(module).values()]
        parts.append(table(words.setting_columns, rows))
    return page(parts)


def _setting_row(setting: SettingHelp, words: Words) -> tuple[str, ...]:
    schema = setting.schema
    return (
        setting.title.in_language(words.language),
        f"`{setting.name}`",
        _shown(schema.get("default"), words.none),
        _allowed(schema, setting.unit, words),
        setting.description.in_language(words.language),
    )


def _allowed(schema: Mapping[str, Any], unit: str, words: Words) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "boolean":
        return f"`true` ({words.yes}), `false` ({words.no})"
    if schema.get("type") == "integer":
        shown = label("unit", unit, words.language) if unit in LABELS["unit"] else unit
        return f"{schema['minimum']:,} – {schema['maximum']:,} {shown}".strip()
    return {"array": "`[…]`", "object": "`{NAME: …}`"}.get(str(schema.get("type")), "")


def label(kind: str, value: str, language: str) -> str:
    """Return the console's word for a value of a closed set."""
    return _catalogue(language).gettext(LABELS[kind].get(value, value))


@functools.cache
def _catalogue(language: str) -> Catalogue:
    return load_catalogue(language)


# --- rules


def rules_page(words: Words) -> str:
    """Return all shipped rules as one table.

    Raises:
        ValueError: a shipped rule cannot be read.
    """
    shipped = read_content(str(CONTENT))
    if shipped.problems:
        raise ValueError(f"a shipped rule has a problem: {shipped.problems[0]}")
    assigned = _default_policies()
    parts = [f"# {words.rules_title}", MADE, words.rules_lead.format(count=len(shipped.rules))]
    for module in MODULES:
        rules = [rule for rule in shipped.rules.values() if rule.module is module.module]
        rows = [_rule_row(rule, assigned, words) for rule in sorted(rules, key=lambda one: one.rule_id)]
        parts += [f"## {module.title.in_language(words.language)}", table(words.rule_columns, rows)]
    return page(parts)


def _rule_row(rule: CatalogRule, assigned: Mapping[str, str], words: Words) -> tuple[str, ...]:
    body = rule.rule
    title, description = body.title.in_language(words.language), body.description.in_language(words.language)
    return (
        f"`{rule.rule_id}`",
        label("severity", body.severity, words.language),
        f"**{title}** {' '.join(description.split())}",
        ", ".join(label("entity", kind, words.language) for kind in rule.entity_types),
        ", ".join(rule.os) or words.everywhere,
        ", ".join(body.techniques),
        assigned.get(rule.rule_id, ""),
    )


def _default_policies() -> dict[str, str]:
    """Return which shipped policy assigns a rule: the one nearest to the root."""
    found: dict[str, str] = {}
    for path in sorted((CONTENT / "policies").glob("*.yaml")):
        file: PolicyFile = read_file(path.read_text(encoding="utf-8"))
        for policy in file.policies:
            for overrides in policy.overrides().modules.values():
                for rule_id, rule in overrides.rules.items():
                    if rule.is_assigned:
                        found.setdefault(rule_id, policy.path)
    return found


# --- command line


def command_line_page() -> str:
    """Return every command of `keibi` with its arguments."""
    parts = [
        "# The command line",
        MADE,
        (
            "`keibi` speaks to the manager that the environment names (`KEIBI_URL`, `KEIBI_API_KEY`, `KEIBI_CA`), else the file "
            "`~/.config/keibi/cli.toml`, else the one that `keibi up` made for root. `keibi agent …` speaks to the agent on this "
            "computer and needs no manager."
        ),
        "Every command takes `--json` (answer in JSON) and `--help`.",
        "Exit status: 0 done; 1 not done, or what was looked at is not well; 2 asked wrongly; 3 without the right to.",
    ]
    for command in commands_of(build_parser()):
        parts.append(f"## {command.name}")
        parts.append(command.about + ".")
        if command.arguments:
            parts.append(table(("argument", "meaning"), command.arguments))
    return page(parts)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command as `--help` tells of it."""

    name: str
    about: str
    arguments: list[tuple[str, str]]


def commands_of(parser: argparse.ArgumentParser) -> Iterator[Command]:
    """Yield the commands below a parser, depth first. Walked by hand, since help texts differ between Python versions."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in below:
        for child in group.choices.values():
            yield from commands_of(child)
    if not below:
        arguments = [_argument(action) for action in parser._actions if action.dest not in ("help", "json")]
        yield Command(parser.prog, (parser.description or "").rstrip("."), arguments)


def _argument(action: argparse.Action) -> tuple[str, str]:
    choices = "|".join(str(choice) for choice in action.choices) if action.choices else ""
    value = str(action.metavar) if action.metavar else choices or action.dest.upper().replace("_", "-")
    about = action.help or {"limit": "how many rows at most (default 50)"}.get(action.dest, "")
    if not action.option_strings:
        many = {"+": " …", "*": " …"}.get(str(action.nargs), "")
        shown = f"{choices or action.dest}{many}"
        return (f"`[{shown}]`" if action.nargs in ("?", "*") else f"`{shown}`", about)
    option = ", ".join(action.option_strings)
    takes_value = action.nargs != 0
    return (f"`{option} {value}`" if takes_value else f"`{option}`", about + (" (needed)" if action.required else ""))


# --- configuration files


def configuration_page() -> str:
    """Return the settings of the agent's and the manager's TOML files."""
    return page(
        [
            "# Configuration files",
            MADE,
            (
                "Both are TOML, and everything has a default: no file is needed. An unknown key or a wrong value is refused "
                "at start, with the nearest known key. What protection does is set in policies: see [settings](settings.md)."
            ),
            "## The manager",
            "`keibi manager run --config FILE`, or `python -m keibi.manager.main --config FILE` (`--check` only checks it).",
            _configuration_table(ManagerConfig),
            "## The agent",
            "`/etc/keibi/agent.toml` (`/var/lib/keibi/agent.toml` where `keibi up` made it).",
            _configuration_table(AgentConfig),
        ]
    )


def _configuration_table(kind: type[msgspec.Struct]) -> str:
    rows = []
    for field in msgspec.structs.fields(kind):
        information = msgspec.inspect.type_info(field.type)
        extra = information.extra_json_schema if isinstance(information, msgspec.inspect.Metadata) else {}
        shown = "`[]`" if field.default == () else _shown(field.default, '`""`')
        rows.append((f"`{field.name}`", shown, str((extra or {}).get("description", ""))))
    return table(("key", "default", "meaning"), rows)


# --- REST API


def rest_api_page() -> str:
    """Return every endpoint with its summary, by subject."""
    app = FastAPI(title="Keibi", version="1")
    for router in API_ROUTERS:
        app.include_router(router)
    document = app.openapi()
    parts = [
        "# The REST API",
        MADE,
        (
            "Everything that the console does. The full description, with every field, is served by the manager at "
            "`/api/v1/openapi.json` (OpenAPI 3.1). Send an API key as `Authorization: Bearer kb_…`, or sign in for a session; a "
            "session's changes need its token in `X-Keibi-Csrf`."
        ),
        (
            "Lists are pages: give `next_cursor` of the answer back as `cursor`. An error is "
            '`{"error": {"code", "message", "hint", …}}` with a status of its family: 400, 404, 409 or 422 mend the request, '
            "401 or 403 get the right, 429 or 503 try later."
        ),
        "    keibi api GET /computers",
        "is the quickest way to look at an answer.",
    ]
    subjects: dict[str, list[tuple[str, str, str]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            row = (f"`{method.upper()}`", f"`{path}`", operation.get("summary", ""))
            subjects.setdefault(", ".join(operation.get("tags", ["other"])), []).append(row)
    for subject, rows in subjects.items():
        parts += [f"## {subject[0].upper()}{subject[1:]}", table(("method", "path", "what it does"), rows)]
    return page(parts)


# --- parts


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [_row(columns), "|" + "---|" * len(columns), *(_row(row) for row in rows)]
    return "\n".join(lines)


def page(parts: Sequence[str]) -> str:
    """Return the paragraphs as one page."""
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _shown(value: Any, empty: str) -> str:
    if value in ("", None) or value == [] or value == {}:
        return empty
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value, ensure_ascii=False)}`"


def main() -> int:
    """Write the pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    options = parser.parse_args()
    made = pages()
    REFERENCE.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, text in made.items():
        target = REFERENCE / name
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not options.check:
                target.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"{'out of date' if options.check else 'written'}: docs/reference/{name}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
