"""The modules that are built. Adding one is a line here and a line in `agent/main.py`."""

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.protection.base import Module, Text
from keibi.protection.integrity_monitoring.rules import Rule
from keibi.protection.integrity_monitoring.settings import SETTINGS_VERSION, IntegrityMonitoringSettings

MODULES: tuple[Module, ...] = (
    Module(
        module=ModuleId.INTEGRITY_MONITORING,
        title=Text(en="Integrity monitoring", ja="変更監視"),
        description=Text(
            en="Detects changes of files, users, services, ports, processes and software against a baseline.",
            ja="ファイル、ユーザ、サービス、ポート、プロセス、ソフトウェアの変更をベースラインと比較して検知します。",
        ),
        states=(ModuleState.OFF, ModuleState.ON, ModuleState.REAL_TIME),
        default_state=ModuleState.REAL_TIME,
        settings_type=IntegrityMonitoringSettings,
        settings_version=SETTINGS_VERSION,
        rule_type=Rule,
    ),
)
