"""Settings that every module has whose verdicts the gate waits for."""

from enum import StrEnum
from typing import Annotated

from keibi.protection.base import Text, help_text


class OnTimeout(StrEnum):
    """What a held process gets when no verdict came in time."""

    ALLOW = "allow"
    DENY = "deny"


ClosedAtMostSeconds = Annotated[
    int,
    help_text(
        Text(en="Longest time without any verdict", ja="判定がまったくない状態の上限"),
        Text(
            en="When no verdict at all comes for so long, as when the module's process is down, what it does not know is let "
            "pass and reported until it answers again: nobody is locked out. 0: never; deny then blocks for as long as that "
            "lasts. What signing in and the package manager need is let pass at once.",
            ja="モジュールのプロセスの停止などで判定がまったく返らない状態がこの時間続くと、締め出しを防ぐため、判定が再開するまで"
            "未知のファイルを許可して記録します。0の場合は切り替えず、denyでは停止中ずっと拒否します。"
            "ログインとパッケージ管理に必要なファイルは常に許可します。",
        ),
        unit="seconds",
        ge=0,
        le=86_400,
    ),
]
