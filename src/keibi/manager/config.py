"""What an administrator can set for the manager, in a TOML file. Everything has a default."""

import difflib
import os
import tomllib
from typing import Annotated

import msgspec
from msgspec import Meta

from keibi.errors import InputError

DEFAULT_STATE = "/var/lib/keibi/manager"


class ManagerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of one manager."""

    state_directory: Annotated[
        str, Meta(title="State", description="Directory of database, events, keys and certificates.", pattern="^/")
    ] = DEFAULT_STATE
    database_url: Annotated[
        str,
        Meta(
            title="Database",
            description="Empty: SQLite in the state directory. Else postgresql://user@host/name; no superuser, please.",
            pattern="^$|^sqlite:|^postgresql:",
        ),
    ] = ""
    address: Annotated[str, Meta(title="Address", description="Address to listen at; 0.0.0.0 for all.", min_length=1)] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(title="Port", description="The one port for agents, API and console.", ge=1, le=65535)] = 8443
    host_names: Annotated[
        tuple[str, ...],
        Meta(
            title="Names",
            description="Names and addresses that agents and browsers use for the manager, for its certificate. "
            "localhost, 127.0.0.1 and the computer's name are always in.",
            max_length=50,
        ),
    ] = ()
    certificate_file: Annotated[
        str, Meta(title="Certificate", description="PEM file of a certificate of your own. Empty: the manager makes one.")
    ] = ""
    key_file: Annotated[str, Meta(title="Key", description="PEM file of the certificate's key.")] = ""
    content_directory: Annotated[
        str, Meta(title="Content", description="Directory of the shipped rules. Empty: the one that came with the program.")
    ] = ""
    session_idle_minutes: Annotated[int, Meta(title="Idle", description="Minutes until an idle one ends.", ge=5, le=1440)] = 120
    session_hours: Annotated[int, Meta(title="Session", description="Hours until every session ends.", ge=1, le=168)] = 12
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(title="Origins", description="Further origins (https://name) of browsers, behind a proxy that renames."),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(title="Proxies", description="Addresses of proxies whose X-Forwarded-For is believed. Nobody else's is."),
    ] = ()
    event_store_url: Annotated[
        str,
        Meta(
            title="Event store",
            description="Empty: the embedded one. Else http(s)://host:8123 of a ClickHouse, which managers can share.",
            pattern="^$|^https?://",
        ),
    ] = ""
    event_store_user: Annotated[str, Meta(title="User", description="User of that ClickHouse.")] = "default"
    event_store_key_file: Annotated[str, Meta(title="Password file", description="File with the password of that user.")] = ""
    event_memory_bytes: Annotated[
        int, Meta(title="Event memory", description="Memory that the event store may take.", ge=512 * 1024**2)
    ] = 2 * 1024**3
    log_level: Annotated[
        str, Meta(title="Log", description="debug, info, warning or error.", pattern="^(debug|info|warning|error)$")
    ] = "info"

    @property
    def url(self) -> str:
        """The database's address."""
        return self.database_url or f"sqlite:///{os.path.join(self.state_directory, 'manager.sqlite3')}"

    def path(self, *parts: str) -> str:
        """Return a path in the state directory."""
        return os.path.join(self.state_directory, *parts)


def load_config(path: str = "", *, state_directory: str = "", port: int = 0) -> ManagerConfig:
    """Return the settings in the file at `path` ("": all defaults), with what else is given put in their place.

    Raises:
        InputError: the file is absent or no TOML, or a key or value is wrong; says which, and what was meant perhaps.
    """
    values: dict[str, object] = {}
    if path:
        try:
            with open(path, "rb") as file:
                values = tomllib.load(file)
        except OSError as error:
            raise InputError("config_unreadable", f"cannot read the configuration: {error.strerror}", where=path) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError("config_malformed", f"this is not TOML: {error}", where=path) from error
    known = {field.name for field in msgspec.structs.fields(ManagerConfig)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InputError("config_key", f"there is no setting {name!r}", where=path, hint=hint)
    if state_directory:
        values["state_directory"] = os.path.abspath(state_directory)
    if port:
        values["port"] = port
    try:
        config = msgspec.convert(values, ManagerConfig)
    except msgspec.ValidationError as error:
        raise InputError("config_value", f"a setting has a wrong value: {error}", where=path) from error
    if bool(config.certificate_file) != bool(config.key_file):
        raise InputError("config_value", "certificate_file and key_file must be given together", where=path)
    return config
