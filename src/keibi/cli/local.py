"""Commands about the agent on this very computer: over its control socket, or on its files when it does not run."""

import argparse
import asyncio
import os
import sys
from typing import Any

from keibi.cli.output import ago, moment, show_fields, show_json, show_table
from keibi.cli.up import AGENT_USER, SCAN_USER, Layout, ensure_users
from keibi.errors import InputError, TryLaterError
from keibi.protection.base import escape_name

SCAN_SILENCE_SECONDS = 600.0


def agent_status(options: argparse.Namespace) -> int:
    """Show how the agent is; 1 when a module has an error or is in safe mode."""
    answer = _ask(options, {"do": "status"})
    if options.json:
        show_json(answer)
        return 0
    agent, manager = answer["agent"], answer["manager"]
    spool = agent.get("spool", {})
    show_fields(
        [
            ("agent", f"{agent['agent_version']}, since {moment(agent['started_at'])}"),
            ("manager", _manager_words(manager)),
            ("policy", f"generation {agent['policy_generation']} is in force"),
            ("policy refused", agent.get("policy_error", "")),
            ("memory", f"{agent.get('memory_bytes', 0) / 1e6:.0f} MB"),
            ("events waiting", spool.get("waiting_count", 0) or ""),
            ("events dropped", spool.get("dropped_count", 0) or ""),
            ("safe mode", agent.get("safe_mode_reason", "")),
        ]
    )
    failed = bool(agent.get("is_safe_mode"))
    for module in agent.get("modules", []):
        failed = failed or module["health"] == "error"
        print(f"\n{module['module'].replace('_', ' ')}: {module['health']}  {module.get('message', '')}".rstrip())
        metrics = module.get("metrics", {})
        show_fields(
            [
                ("  rules", module.get("rule_count", "")),
                ("  entities", f"{metrics['entities_count']:,.0f}" if "entities_count" in metrics else ""),
                ("  last scan", ago(metrics.get("last_scan_at")) if "last_scan_at" in metrics else ""),
                ("  next scan", moment(metrics.get("next_scan_at"))),
                ("  drifts", metrics.get("drifts_waiting_count") or ""),
                ("  software", f"{metrics['software_count']:,.0f}" if "software_count" in metrics else ""),
                ("  unrecognised", f"{metrics['unrecognised_count']:,.0f}" if metrics.get("unrecognised_count") else ""),
            ]
        )
        for lacking in module.get("not_enforced", []):
            print(f"  not enforced: {lacking['what']}: {lacking['reason']}")
    lacking = [one for one in agent.get("capabilities", []) if not one["is_available"]]
    if lacking:
        print("\nnot available here:")
        for one in lacking:
            print(f"  {one['name'].replace('_', ' ')}: {one['reason']}")
    return int(failed)


def agent_scan(options: argparse.Namespace) -> int:
    """Run a scan now and follow it; 1 when it was not done."""
    asked: dict[str, Any] = {"do": "scan", "module": "integrity_monitoring"}
    if options.paths:
        asked["arguments"] = {"paths": [escape_name(os.path.abspath(path)) for path in options.paths]}
    answer = _ask(options, asked, timeout_seconds=SCAN_SILENCE_SECONDS, on_progress=None if options.json else _show_progress)
    if options.json:
        show_json(answer)
    else:
        print(answer.get("message") or answer.get("state", ""))
    return 0 if answer.get("state") == "done" else 1


def agent_doctor(options: argparse.Namespace) -> int:
    """Look for what is wrong, also when the agent does not run; 1 when something is."""
    try:
        rows = _ask(options, {"do": "doctor"})["rows"]
    except TryLaterError:
        from keibi.agent.config import load_config
        from keibi.agent.doctor import examine

        absent = {
            "check": "agent",
            "outcome": "fail",
            "found": "it does not run on this computer",
            "what_to_do": "start it: 'keibi up', 'systemctl start keibi-agent', or 'keibi agent run'",
        }
        rows = [absent, *(_row(row) for row in examine(load_config(options.config or _config_path())))]
    if options.json:
        show_json(rows)
    else:
        show_table(
            ("check", "", "found", "what to do"),
            [(row["check"], row["outcome"], row["found"], row["what_to_do"]) for row in rows],
            empty="Nothing was examined.",
        )
    return int(any(row["outcome"] == "fail" for row in rows))


def leave_safe_mode(options: argparse.Namespace) -> int:
    """Start again what crashed too often."""
    left = _ask(options, {"do": "leave-safe-mode"}).get("left", [])
    print(f"started again: {', '.join(left)}" if left else "nothing is in safe mode")
    return 0


def agent_unlock(options: argparse.Namespace) -> int:
    """Show a challenge, or with its code let application control block nothing for a while."""
    asked: dict[str, Any] = {"do": "unlock"}
    if options.code:
        asked |= {"code": " ".join(options.code), "minutes": options.minutes}
    answer = _ask(options, asked, timeout_seconds=60.0)
    if options.json:
        show_json(answer)
    elif "challenge" in answer:
        print(f"Challenge: {answer['challenge']}")
        print("The console makes the code for it, on this computer's page. Then: keibi agent unlock CODE")
    else:
        print(f"Application control blocks nothing until {moment(answer['until'])}.")
    return 0


def agent_enrol(options: argparse.Namespace) -> int:
    """Enrol this computer with a token."""
    from keibi.agent.config import load_config
    from keibi.agent.enrolment import enrol

    try:
        with open(options.ca, encoding="utf-8") as file:
            ca = file.read()
    except OSError as error:
        raise InputError("ca_unreadable", f"cannot read the manager's authority: {error.strerror}", where=options.ca) from error
    if os.geteuid() == 0:
        ensure_users((AGENT_USER, SCAN_USER))
    identity = enrol(load_config(options.config or _config_path()), options.manager, options.token, ca, again=options.again)
    print(f"This computer is {identity.computer_id} of {identity.tenant_name}, at {identity.manager_url}.")
    return 0


def agent_run(options: argparse.Namespace) -> int:
    """Run the agent in the foreground."""
    from keibi.agent.main import main

    return main(["--config", options.config] if options.config else [])


def manager_run(options: argparse.Namespace) -> int:
    """Run the manager in the foreground."""
    from keibi.manager.main import main

    return main(
        [*(["--config", options.config] if options.config else []), *(["--state", options.state] if options.state else [])]
    )


def reset_password(options: argparse.Namespace) -> int:
    """Give a user of the local manager another password, read from standard input."""
    from keibi.manager.config import load_config
    from keibi.manager.main import reset_password as reset

    if sys.stdin.isatty():
        import getpass

        password = getpass.getpass("New password: ")
    else:
        password = sys.stdin.readline().rstrip("\n")
    # A configuration file names its own directory: another manager's user must not be reset by mistake.
    state = options.state or ("" if options.config else Layout().manager_state)
    reset(load_config(options.config, state_directory=state), options.name, password)
    print(f"{options.name} has the new password and may sign in")
    return 0


def _manager_words(manager: dict[str, Any]) -> str:
    if not manager.get("computer_id"):
        return "not enrolled: 'keibi agent enrol' does it"
    state = "connected" if manager.get("is_connected") else "not connected"
    heard = f"last heard {ago(manager.get('last_success_at'))}"
    return f"{manager.get('address', '')}, {state}, {heard}, as {manager['computer_id']} of {manager.get('tenant_name', '')}"


def _ask(options: argparse.Namespace, asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    # Imported here: these need the agent's packages, which a computer with only the manager may lack.
    from keibi.agent.config import load_config
    from keibi.agent.control import request

    return asyncio.run(request(load_config(options.config or _config_path()).socket_path, asked, **more))


def _config_path() -> str:
    made_by_up = Layout().agent_config
    return made_by_up if os.path.exists(made_by_up) else "/etc/keibi/agent.toml"


def _row(row: Any) -> dict[str, Any]:
    import msgspec

    built = msgspec.to_builtins(row)
    return built if isinstance(built, dict) else {}


def _show_progress(progress: dict[str, Any]) -> None:
    if progress.get("message"):
        print(f"{progress['message']}", file=sys.stderr)
