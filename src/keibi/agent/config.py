"""What an administrator can set for the agent, in /etc/keibi/agent.toml. Everything has a default; policy is the manager's."""

import difflib
import tomllib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from keibi.errors import InputError

DEFAULT_PATH = "/etc/keibi/agent.toml"


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of one agent."""

    manager_url: Annotated[
        str,
        Meta(
            title="Manager",
            description="Address of the manager. Empty: the address the computer was enrolled at.",
            pattern="^$|^https://",
        ),
    ] = ""
    ca_file: Annotated[
        str,
        Meta(
            title="CA file",
            description="PEM file of the only authority trusted for the manager. Empty: the one kept at enrolment.",
        ),
    ] = ""
    state_directory: Annotated[
        str,
        Meta(
            title="State", description="Directory of identity, policy, spool and baselines; only root may read it.", pattern="^/"
        ),
    ] = "/var/lib/keibi/agent"
    socket_path: Annotated[
        str,
        Meta(
            title="Control socket",
            description="Socket on which `keibi agent status` and its kin talk to the agent.",
            pattern="^/",
            max_length=100,
        ),
    ] = "/run/keibi/agent.sock"
    heartbeat_seconds: Annotated[
        int, Meta(title="Heartbeat", description="Seconds between heartbeats. 0: as the manager says.", ge=0, le=3600)
    ] = 0
    spool_max_bytes: Annotated[
        int,
        Meta(
            title="Spool size",
            description="Bytes of events kept while the manager is away; beyond it the least severe and oldest are dropped.",
            ge=1024 * 1024,
            le=64 * 1024 * 1024 * 1024,
        ),
    ] = 256 * 1024 * 1024
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(title="Log level", description="Least level of the lines written to standard error."),
    ] = "info"


def load_config(path: str = DEFAULT_PATH, *, must_exist: bool = False) -> AgentConfig:
    """Return the settings in the TOML file at `path`; the defaults when there is none and none is needed.

    Raises:
        InputError: the file is absent though named, unreadable, not TOML, or holds an unknown key or a wrong value.
    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except FileNotFoundError:
        if not must_exist:
            return AgentConfig()
        raise InputError(
            "config_absent", "there is no configuration file", where=path, hint="name another one with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("config_unreadable", f"the configuration could not be read: {error}", where=path) from error
    return parse_config(text, where=path)


def parse_config(text: str, *, where: str) -> AgentConfig:
    """Return the settings that the TOML `text` holds.

    Raises:
        InputError: it is not TOML, or holds an unknown key or a wrong value.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("config_malformed", f"the configuration is not TOML: {error}", where=where) from error
    known = [field.name for field in msgspec.structs.fields(AgentConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the settings are {', '.join(known)}"
            raise InputError("config_unknown_key", f"there is no setting {key!r}", where=where, hint=hint)
    try:
        return msgspec.convert(values, AgentConfig)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        shown = f"{name} = {values.get(name)!r}: {message}" if name else message
        raise InputError("config_invalid", f"a setting has a wrong value: {shown}", where=where, hint=_help_of(name)) from error


def sample_toml() -> str:
    """Return a configuration file in which every setting stands with its help and its default, commented out."""
    lines = ["# Settings of the Keibi agent. What is left out has the default shown here.", ""]
    for field in msgspec.structs.fields(AgentConfig):
        shown = f'"{field.default}"' if isinstance(field.default, str) else field.default
        lines += [f"# {_help_of(field.name)}", f"#{field.name} = {shown}", ""]
    return "\n".join(lines)


def _help_of(name: str) -> str:
    for field in msgspec.structs.fields(AgentConfig):
        if field.name == name:
            information = msgspec.inspect.type_info(field.type)
            if isinstance(information, msgspec.inspect.Metadata):
                return str((information.extra_json_schema or {}).get("description", ""))
    return ""
