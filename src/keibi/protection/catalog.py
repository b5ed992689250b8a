"""The modules that are built. Adding one is a line here and a line in `agent/main.py`."""

from keibi.contract.names import ModuleId
from keibi.contract.policy import ModuleState
from keibi.protection.anti_malware.rules import Rule as AntiMalwareRule
from keibi.protection.anti_malware.settings import SETTINGS_VERSION as ANTI_MALWARE_SETTINGS_VERSION
from keibi.protection.anti_malware.settings import AntiMalwareSettings
from keibi.protection.application_control.rules import Rule as ApplicationControlRule
from keibi.protection.application_control.settings import SETTINGS_VERSION as APPLICATION_CONTROL_SETTINGS_VERSION
from keibi.protection.application_control.settings import ApplicationControlSettings
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
    Module(
        module=ModuleId.APPLICATION_CONTROL,
        title=Text(en="Application control", ja="アプリケーションコントロール"),
        description=Text(
            en="Keeps an inventory of programs, libraries and scripts, and lets only recognised software run.",
            ja="プログラム、ライブラリ、スクリプトを棚卸しし、承認されたソフトウェアだけに実行を許可します。",
        ),
        states=(ModuleState.OFF, ModuleState.DETECT, ModuleState.PREVENT),
        default_state=ModuleState.OFF,
        settings_type=ApplicationControlSettings,
        settings_version=APPLICATION_CONTROL_SETTINGS_VERSION,
        rule_type=ApplicationControlRule,
    ),
    Module(
        module=ModuleId.ANTI_MALWARE,
        title=Text(en="Anti-malware", ja="不正プログラム対策"),
        description=Text(
            en="Finds malware in files as they are written, read and executed, in scans, and in memory; acts by threat class.",
            ja="ファイルの書き込み・読み取り・実行時、検索時、およびメモリ内の不正プログラムを検出し、脅威の種類に応じて処理します。",
        ),
        states=(ModuleState.OFF, ModuleState.ON, ModuleState.PREVENT),
        default_state=ModuleState.OFF,
        settings_type=AntiMalwareSettings,
        settings_version=ANTI_MALWARE_SETTINGS_VERSION,
        rule_type=AntiMalwareRule,
    ),
)
