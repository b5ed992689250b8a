"""What a policy can set for integrity monitoring. Help texts are data: form, schema and reference page come from them."""

from enum import StrEnum
from typing import Annotated

import msgspec

from keibi.protection.base import Text, help_text

SETTINGS_VERSION = 1


class BaselineMode(StrEnum):
    """What becomes of a reported difference."""

    ROLLING = "rolling"
    APPROVAL = "approval"


class HashAlgorithm(StrEnum):
    """How file content is fingerprinted."""

    SHA256 = "sha256"
    BLAKE3 = "blake3"


class IntegrityMonitoringSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of the module on one computer."""

    baseline_mode: Annotated[
        BaselineMode,
        help_text(
            Text(en="Baseline", ja="ベースラインの扱い"),
            Text(
                en="Rolling: a reported difference becomes the new baseline. Approval: it stays a drift until a person "
                "approves or rejects it.",
                ja="rolling：検知した差分を新しいベースラインにします。approval：承認または却下されるまで差分として残します。",
            ),
        ),
    ] = BaselineMode.ROLLING
    hash_algorithm: Annotated[
        HashAlgorithm,
        help_text(
            Text(en="Hash algorithm", ja="ハッシュアルゴリズム"),
            Text(
                en="SHA-256 can be looked up elsewhere; BLAKE3 takes about a third less CPU time. A change needs a rebuild.",
                ja="SHA-256は他の情報と照合できます。BLAKE3はCPU時間が約3分の1少なくなります。変更後は再構築が必要です。",
            ),
        ),
    ] = HashAlgorithm.SHA256
    scan_schedule: Annotated[
        str,
        help_text(
            Text(en="Scheduled scan", ja="予約検索"),
            Text(
                en="Five cron fields in the computer's own time zone; empty for none.",
                ja="コンピュータのタイムゾーンでのcron形式（5項目）。空欄の場合は実行しません。",
            ),
            max_length=100,
        ),
    ] = "17 3 * * *"
    full_rehash_days: Annotated[
        int,
        help_text(
            Text(en="Full re-hash within", ja="全ファイルの再ハッシュ周期"),
            Text(
                en="A scheduled scan trusts unchanged change-times and re-reads a share of all files each time, so that every "
                "file is read once within so many days. 1 reads all of them in every scan.",
                ja="予約検索では更新時刻が同じファイルの読み直しを省き、この日数で全ファイルを一巡するように一部を読み直します。1の場合は毎回すべて読みます。",
            ),
            unit="days",
            ge=1,
            le=90,
        ),
    ] = 7
    capture_content: Annotated[
        bool,
        help_text(
            Text(en="Show what changed inside text files", ja="テキストファイルの変更箇所を表示"),
            Text(
                en="Keeps a copy of small text files on the computer and sends the difference with the event. Turn off where no "
                "content may leave the computer.",
                ja="小さなテキストファイルの写しをコンピュータ内に保持し、差分をイベントとともに送信します。内容を外部に出せない場合はオフにしてください。",
            ),
        ),
    ] = True
    content_max_bytes: Annotated[
        int,
        help_text(
            Text(en="Largest file for content", ja="内容を扱うファイルの上限"),
            Text(
                en="Files above this size are fingerprinted but neither compared line by line nor kept for restore.",
                ja="これより大きいファイルはハッシュのみ記録し、行単位の比較と復元用の保存は行いません。",
            ),
            unit="bytes",
            ge=0,
            le=16 * 1024 * 1024,
        ),
    ] = 256 * 1024
    content_store_max_megabytes: Annotated[
        int,
        help_text(
            Text(en="Space for kept content", ja="内容の保存領域"),
            Text(
                en="Upper bound of the copies kept on the computer for differences and restore.",
                ja="差分表示と復元のためにコンピュータ内に保持する写しの上限です。",
            ),
            unit="MiB",
            ge=0,
            le=102_400,
        ),
    ] = 256
    mask_secrets: Annotated[
        bool,
        help_text(
            Text(en="Mask secrets in differences", ja="差分内の秘密情報を伏せる"),
            Text(
                en="Passwords, keys and tokens are replaced before anything leaves the computer.",
                ja="パスワード、鍵、トークンはコンピュータの外に出る前に伏せ字にします。",
            ),
        ),
    ] = True
    cpu_percent: Annotated[
        int,
        help_text(
            Text(en="CPU for scans", ja="検索のCPU使用率"),
            Text(
                en="Share of one core that a scan may use. Real-time monitoring is not held back.",
                ja="検索が使用できる1コアあたりの割合です。リアルタイム監視は制限しません。",
            ),
            unit="%",
            ge=5,
            le=6400,
        ),
    ] = 100
    excluded_paths: Annotated[
        list[str],
        help_text(
            Text(en="Never watched", ja="監視対象外のパス"),
            Text(
                en="Absolute path patterns that no rule watches; ** stands for any number of folders.",
                ja="どのルールでも監視しない絶対パスのパターン。**は任意の階層に一致します。",
            ),
        ),
    ] = []
    variables: Annotated[
        dict[str, str],
        help_text(
            Text(en="Variables", ja="変数"),
            Text(
                en="Values for ${NAME} in the paths of rules, so that one rule fits computers that differ.",
                ja="ルールのパスに含まれる${NAME}の値。構成の異なるコンピュータに同じルールを適用できます。",
            ),
        ),
    ] = {}
