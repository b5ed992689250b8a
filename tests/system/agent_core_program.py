"""The real agent core with the workers that a test names: agent_core_program.py CONFIG WORKERS_JSON."""

import json
import sys

from keibi.agent.config import load_config
from keibi.agent.main import exit_code_of, run
from keibi.agent.worker_link import RestartLimits, WorkerSpec
from keibi.contract.commands import CommandKind
from keibi.contract.names import ModuleId


def specs(text: str) -> list[WorkerSpec]:
    return [
        WorkerSpec(
            name=item["name"],
            argv=(sys.executable, *item["argv"]),
            serves=ModuleId.INTEGRITY_MONITORING,
            module=ModuleId(item.get("module", ModuleId.INTEGRITY_MONITORING))
            if not item.get("is_sensor") and item.get("module", "") is not None
            else None,
            goes_on_with=frozenset(map(CommandKind, item.get("goes_on_with", ()))),
            silent_seconds=item.get("silent_seconds", 0.0),
            encoding=item.get("encoding", "msgpack"),
            is_sensor=item.get("is_sensor", False),
            limits=RestartLimits(least_wait_seconds=0.05, hello_seconds=item.get("hello_seconds", 20.0)),
        )
        for item in json.loads(text)
    ]


sys.exit(exit_code_of(lambda: run(load_config(sys.argv[1], must_exist=True), workers=specs(sys.argv[2]))))
