"""What a policy can set for application control. Help texts are data: form, schema and reference page come from them."""

from enum import StrEnum
from typing import Annotated

import msgspec

from keibi.protection.base import Text, help_text
from keibi.protection.gate_settings import ClosedAtMostSeconds, OnTimeout

SETTINGS_VERSION = 1


class Unrecognised(StrEnum):
    """What becomes of software that is not in the inventory and that no rule names."""

    ALLOW = "allow"
    BLOCK = "block"


class InlineCode(StrEnum):
    """What becomes of code that an interpreter takes from its command line or its standard input."""

    ALLOW = "allow"
    REPORT = "report"
    BLOCK = "block"


SCRIPT_SUFFIXES = (".py", ".pyc", ".pl", ".pm", ".rb", ".php", ".phar", ".js", ".mjs", ".cjs", ".lua", ".sh", ".bash", ".jar")
"""Names that count as scripts though neither "#!" nor an execute bit says so."""


class ApplicationControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of the module on one computer."""

    unrecognised: Annotated[
        Unrecognised,
        help_text(
            Text(en="Unrecognised software", ja="未承認のソフトウェア"),
            Text(
                en="Allow: it runs until a rule blocks it. Block: it does not run until somebody allows it. In detect mode "
                "nothing is held up; what would be blocked is reported.",
                ja="allow：ルールでブロックするまで実行を許可します。block：許可するまで実行をブロックします。検出モードでは止めずに、ブロック対象となる実行を報告します。",
            ),
        ),
    ] = Unrecognised.BLOCK
    control_libraries: Annotated[
        bool,
        help_text(
            Text(en="Shared libraries", ja="共有ライブラリを対象にする"),
            Text(
                en="Judges ELF files also when they are opened, and not only when they are executed: preloaded and loaded "
                "libraries, and programs that are started through the dynamic loader.",
                ja="ELFファイルを実行時だけでなく開いたときにも判定します。プリロード、動的ロード、動的リンカ経由の実行が対象になります。",
            ),
        ),
    ] = True
    control_scripts: Annotated[
        bool,
        help_text(
            Text(en="Scripts", ja="スクリプトを対象にする"),
            Text(
                en="Judges scripts when an interpreter opens them, so that `sh file` is treated like `./file`.",
                ja="インタプリタがスクリプトを開いたときに判定します。「sh ファイル名」も「./ファイル名」と同じ扱いになります。",
            ),
        ),
    ] = True
    script_suffixes: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="Names of scripts", ja="スクリプトとみなす拡張子"),
            Text(
                en="Files with these endings are scripts; so are those that begin with #!.",
                ja="この拡張子のファイルと、先頭が#!のファイルをスクリプトとみなします。",
            ),
        ),
    ] = SCRIPT_SUFFIXES
    interpreters: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="Interpreters", ja="インタプリタ"),
            Text(
                en="Patterns of the programs that run scripts: what they open is judged, and their command line is looked at "
                "for inline code.",
                ja="スクリプトを実行するプログラムのパターン。これらが開くファイルを判定し、コマンドラインのインラインコードを調べます。",
            ),
        ),
    ] = (
        "/usr/bin/python*",
        "/usr/bin/perl*",
        "/usr/bin/ruby*",
        "/usr/bin/php*",
        "/usr/bin/node",
        "/usr/bin/nodejs",
        "/usr/bin/lua*",
        "/usr/bin/bash",
        "/usr/bin/dash",
        "/usr/bin/zsh",
        "/usr/bin/ksh*",
        "/usr/bin/mksh",
        "/usr/bin/busybox",
        "/usr/lib/jvm/*/bin/java",
        "/usr/local/bin/python*",
        "/opt/*/bin/python*",
    )
    inline_code: Annotated[
        InlineCode,
        help_text(
            Text(en="Inline code", ja="インラインコード"),
            Text(
                en="Code that an interpreter takes from its command line (-c, -e), from its standard input, or from a file that "
                "does not look like a script. Block needs care: many programs use it.",
                ja="コマンドライン（-c、-e）、標準入力、またはスクリプトに見えないファイルから読み込まれるコードの扱い。多くのプログラムが利用するため、blockは慎重に設定してください。",
            ),
        ),
    ] = InlineCode.ALLOW
    inline_code_from_uid: Annotated[
        int,
        help_text(
            Text(en="Inline code: from user number", ja="インラインコード：対象ユーザ番号の下限"),
            Text(
                en="Only users with this number or a higher one are held to it; 1000 is the first person on most systems.",
                ja="この番号以上のユーザだけを対象にします。多くのシステムでは1000以降が一般ユーザです。",
            ),
            ge=0,
            le=4_294_967_295,
        ),
    ] = 1000
    trust_package_manager: Annotated[
        bool,
        help_text(
            Text(en="Trust package managers", ja="パッケージ管理を信頼"),
            Text(
                en="What dpkg, apt and rpm write, and the scripts of packages with them, is recognised before it can run.",
                ja="dpkg、apt、rpmと、パッケージ付属のスクリプトが書き込んだファイルを、実行前に承認済みにします。",
            ),
        ),
    ] = True
    trusted_virtual_environments: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="Trusted Python environments", ja="信頼するPython環境"),
            Text(
                en="Folders of virtual environments. What pip of such an environment writes into it is recognised.",
                ja="仮想環境のフォルダ。その環境のpipが環境内に書き込んだファイルを承認済みにします。",
            ),
        ),
    ] = ()
    trusted_updaters: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="Trusted updaters", ja="信頼する更新プログラム"),
            Text(
                en="Absolute paths of deployment programs. What they and their child processes write is recognised, as long as "
                "the program itself is recognised.",
                ja="配備プログラムの絶対パス。プログラム自体が承認済みである限り、その子プロセスも含めて書き込んだファイルを承認済みにします。",
            ),
        ),
    ] = ()
    trusted_readers: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="May open unrecognised software", ja="未承認ファイルを開けるプログラム"),
            Text(
                en="Programs that open software without running it, such as compilers, backups and archivers: they are not "
                "judged by what they open. A reader that loads libraries is a way round.",
                ja="コンパイラ、バックアップ、アーカイバなど、ソフトウェアを実行せずに開くプログラム。開くファイルでは判定しません。ライブラリを読み込むものは抜け道になります。",
            ),
        ),
    ] = (
        "/usr/bin/cp",
        "/usr/bin/mv",
        "/usr/bin/tar",
        "/usr/bin/rsync",
        "/usr/bin/install",
        "/usr/bin/sha256sum",
        "/usr/bin/file",
        "/usr/bin/ld*",
        "/usr/bin/*-ld*",
        "/usr/bin/strip",
        "/usr/bin/*-strip",
        "/usr/bin/ar",
        "/usr/bin/*-ar",
        "/usr/lib/gcc/*/*/*",
        "/usr/bin/git",
    )
    places: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="Only these mount points", ja="対象のマウントポイント"),
            Text(
                en="Where software is controlled; empty for every local file system.",
                ja="制御の対象にするマウントポイント。空欄の場合はすべてのローカルファイルシステムです。",
            ),
        ),
    ] = ()
    excluded_directories: Annotated[
        tuple[str, ...],
        help_text(
            Text(en="Never controlled", ja="対象外のフォルダ"),
            Text(
                en="Absolute folders whose software is neither judged nor in the inventory. Whoever may write there may run "
                "anything.",
                ja="判定も棚卸しもしないフォルダの絶対パス。そこに書き込める利用者は何でも実行できます。",
            ),
        ),
    ] = ()
    deadline_milliseconds: Annotated[
        int,
        help_text(
            Text(en="Longest wait for a verdict", ja="判定の待ち時間の上限"),
            Text(
                en="After this time the program runs or is refused as the next setting says, and an event tells of it.",
                ja="この時間を過ぎると、次の設定に従って実行または拒否し、イベントで知らせます。",
            ),
            unit="ms",
            ge=100,
            le=60_000,
        ),
    ] = 3000
    on_timeout: Annotated[
        OnTimeout,
        help_text(
            Text(en="Without a verdict", ja="判定できない場合"),
            Text(
                en="Allow keeps the computer running when the agent is slow. Deny keeps unknown software out even then.",
                ja="allow：判定が遅れてもコンピュータの動作を優先します。deny：その場合も未承認の実行を拒否します。",
            ),
        ),
    ] = OnTimeout.ALLOW
    closed_at_most_seconds: ClosedAtMostSeconds = 60
    inventory_cpu_percent: Annotated[
        int,
        help_text(
            Text(en="CPU for the inventory", ja="棚卸しのCPU使用率"),
            Text(
                en="Share of one core that building and checking the inventory may use.",
                ja="インベントリの作成と照合が使用できる1コアあたりの割合です。",
            ),
            unit="%",
            ge=5,
            le=6400,
        ),
    ] = 50
    report_drift: Annotated[
        bool,
        help_text(
            Text(en="Report software that appears or changes", ja="ソフトウェアの追加と変更を報告"),
            Text(
                en="An event for each new or changed program, library and script, with who brought it.",
                ja="追加または変更されたプログラム、ライブラリ、スクリプトを、持ち込んだユーザやプロセスとともに報告します。",
            ),
        ),
    ] = True
    report_package_changes: Annotated[
        bool,
        help_text(
            Text(en="Report also what trusted updaters bring", ja="信頼する更新による変更も報告"),
            Text(
                en="Off, a package update fills the inventory without an event for each of its files.",
                ja="オフの場合、パッケージ更新はファイルごとのイベントを出さずにインベントリへ反映します。",
            ),
        ),
    ] = False
    protect_agent: Annotated[
        bool,
        help_text(
            Text(en="Protect the agent", ja="エージェントの保護"),
            Text(
                en="Reports who changes the agent's own programs as a grave change. In prevent mode, where the kernel takes BPF "
                "LSM programs, others can neither end or trace its processes nor write to its state; each attempt is reported. "
                "No rule can stop the agent in any case. Root can still remove it: this makes that visible, not impossible.",
                ja="エージェント自身のプログラムの変更を重大な変更として報告します。"
                "防御モードでカーネルがBPF LSMに対応している場合は、プロセスの終了や追跡、"
                "状態ファイルへの書き込みも拒否し、報告します。"
                "ルールによってエージェントが停止することはありません。rootによる削除は防げませんが、記録に残ります。",
            ),
        ),
    ] = True
