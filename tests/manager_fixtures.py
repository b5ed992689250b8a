"""Real databases for the manager's tests: SQLite in a file, and PostgreSQL 15 on a Unix socket of its own.

Use in a test module or a conftest: `from tests.manager_fixtures import database, database_url, postgresql_server` (with
`# noqa: F401`). Every test that takes `database` runs on both; `database` is migrated and empty. Each test on PostgreSQL gets
a new database, copied from a migrated template, and a role that is no superuser, so that row-level security applies.
"""

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from sqlalchemy import create_engine, text

from keibi.manager.database import Database

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "150",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "log_min_messages": "fatal",
}


@dataclass
class PostgresqlServer:
    """A running server; `new_database()` gives the URL of a fresh, empty database owned by a plain role."""

    directory: str
    _count: int = field(default=0)
    _template: str = field(default="")

    def url(self, database: str, role: str = "keibi") -> str:
        return f"postgresql://{role}@/{database}?host={self.directory}"

    def new_database(self, template: str = "template0") -> str:
        self._count += 1
        name = f"test_{self._count}"
        self._as_superuser(f"CREATE DATABASE {name} OWNER keibi TEMPLATE {template}")
        return self.url(name)

    def new_migrated_database(self) -> str:
        if not self._template:
            url = self.new_database()
            database = Database(url)
            database.migrate()
            database.dispose()
            self._template = f"test_{self._count}"
        return self.new_database(self._template)

    def drop(self, url: str) -> None:
        self._as_superuser(f"DROP DATABASE {url.partition('@/')[2].partition('?')[0]} WITH (FORCE)")

    def _as_superuser(self, statement: str) -> None:
        engine = create_engine(self.url("postgres", "postgres").replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()


def _binaries() -> str:
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        pytest.fail("PostgreSQL is not installed: run scripts/install_packages.sh test")
    return found[-1]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    binaries = _binaries()
    # Under /tmp by itself and short: the path of a Unix socket has at most 107 bytes.
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 2**30 else None
    directory = tempfile.mkdtemp(prefix="keibi-pg-", dir=in_memory)
    account: dict[str, object] = {}
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root.
        user = pwd.getpwnam("postgres")
        os.chown(directory, user.pw_uid, user.pw_gid)
        account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = os.path.join(directory, "data")
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    subprocess.run(
        [f"{binaries}/initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
        env=environment,
        **account,
    )
    settings = [argument for name, value in _SETTINGS.items() for argument in ("-c", f"{name}={value}")]
    process = subprocess.Popen(
        [f"{binaries}/postgres", "-D", data, "-k", directory, *settings],
        cwd="/",
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **account,
    )
    try:
        subprocess.run([f"{binaries}/pg_isready", "-q", "-h", directory, "-t", "30"], check=False, cwd="/", env=environment)
        server = PostgresqlServer(directory)
        _wait_for(server)
        server._as_superuser("CREATE ROLE keibi LOGIN NOSUPERUSER NOBYPASSRLS")
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for(server: PostgresqlServer) -> None:
    import time

    deadline = time.monotonic() + 30
    while True:
        try:
            server._as_superuser("SELECT 1")
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("sqlite-template") / "manager.sqlite3")
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path) -> Iterator[str]:
    """The URL of a migrated, empty database; once for SQLite and once for PostgreSQL."""
    if request.param == "sqlite":
        path = tmp_path / "manager.sqlite3"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server = request.getfixturevalue("postgresql_server")
    url = server.new_migrated_database()
    yield url
    server.drop(url)


@pytest.fixture
def database(database_url) -> Iterator[Database]:
    """A migrated, empty database; once for SQLite and once for PostgreSQL."""
    opened = Database(database_url)
    yield opened
    opened.dispose()
