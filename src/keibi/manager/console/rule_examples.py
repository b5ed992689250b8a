"""Rules to begin from, and changes to try a rule with: one of each for every module."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from keibi.contract.names import ModuleId


@dataclass(frozen=True)
class Example:
    """A rule as YAML, and something that it speaks of."""

    rule: str
    trial: str


EXAMPLES: Mapping[ModuleId, Example] = MappingProxyType(
    {
        ModuleId.INTEGRITY_MONITORING: Example(
            """\
id: im-my-application
version: 1
title:
  en: My application's configuration
  ja: アプリケーションの設定
description:
  en: Says when the configuration of our application changes.
  ja: アプリケーションの設定が変更されたことを検知します。
severity: medium
entities:
  - type: file
    base: /etc/my-application
    include: ["**"]
    exclude: ["**/*.swp"]
""",
            """\
type: file
key: /etc/my-application/main.conf
change: updated
before: {size: 10}
after: {size: 12}
""",
        ),
        ModuleId.APPLICATION_CONTROL: Example(
            """\
id: ac-own-my-application
version: 1
title:
  en: My application
  ja: 自社アプリケーション
description:
  en: What our deployment brings.
  ja: 配備されるソフトウェアです。
severity: low
action: allow
entries:
  - {kind: path, pattern: /opt/my-application/**}
  - {kind: package, name: my-application, origin: My Company}
""",
            """\
path: /opt/my-application/bin/run
is_root_writable_only: true
""",
        ),
        ModuleId.ANTI_MALWARE: Example(
            """id: am-own-marker
version: 1
title:
  en: A script that should not be here
  ja: 存在してはならないスクリプト
description:
  en: Finds a script by two words that only it has.
  ja: 特有の2つの語句を含むスクリプトを検出します。
severity: high
threat: Own.Marker
threat_class: unwanted
scope: [text]
yara: |
  rule own_marker {
    strings:
      $one = "our-marker-one"
      $two = "our-marker-two" nocase
    condition:
      filesize < 1MB and all of them
  }
samples:
  - {name: found.sh, content: "echo our-marker-one; echo OUR-MARKER-TWO", matches: true}
  - {name: near-miss.sh, content: "echo our-marker-one", matches: false}
""",
            """name: example.sh
content: |
  #!/bin/sh
  echo our-marker-one; echo our-marker-two
""",
        ),
    }
)
DEFAULT = ModuleId.INTEGRITY_MONITORING


def rule_for(module: ModuleId) -> str:
    """Return a rule of a module to begin from."""
    return EXAMPLES.get(module, EXAMPLES[DEFAULT]).rule


def trial_for(module: ModuleId, body: Mapping[str, Any] | None = None) -> str:
    """Return something to try a rule with: of the first thing that the rule speaks of, where it can be told."""
    if body is None:
        return EXAMPLES[module].trial if module in EXAMPLES else ""
    if module is ModuleId.INTEGRITY_MONITORING:
        return _change(body)
    if module is ModuleId.APPLICATION_CONTROL:
        return _software(body)
    if module is ModuleId.ANTI_MALWARE:
        return "name: example.sh\ncontent: |\n  #!/bin/sh\n"
    return trial_for(module)


def _change(body: Mapping[str, Any]) -> str:
    watched = next(iter(body.get("entities") or [{}]))
    pattern = str(next(iter(watched.get("include") or ["**"])))
    name = _named(pattern)
    key = f"{watched['base'].rstrip('/')}/{name}" if watched.get("base") else name
    return f"type: {watched.get('type', 'file')}\nkey: {key}\nchange: created\n"


def _software(body: Mapping[str, Any]) -> str:
    entry = next(iter(body.get("entries") or [{}]))
    match entry.get("kind"):
        case "hash":
            return f"path: /usr/local/bin/example\nsha256: {entry['sha256']}\n"
        case "package":
            origin = f"\norigin: {entry['origin']}" if entry.get("origin") else ""
            return f"path: /usr/bin/example\npackage: {_named(entry['name'])}{origin}\n"
        case "signer":
            return f"path: /usr/bin/example\npackage: example\nsigner: {entry['key_id']}\n"
        case "path":
            return f"path: {_named(entry['pattern'])}\n"
        case "interpreter":
            return f"path: {_named(entry['path'])}\ninline: command\nuid: 1000\n"
    return EXAMPLES[ModuleId.APPLICATION_CONTROL].trial


def _named(pattern: str) -> str:
    return pattern.replace("**", "example").replace("*", "example").replace("?", "x")
