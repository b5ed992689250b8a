"""Configuration, keys, certificates and the state directory: what is made, and what is said when it cannot be."""

import datetime as dt
import os
import pathlib
import ssl
import stat

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from keibi.errors import InputError, KeibiError, RefusedError, TryLaterError
from keibi.manager import certificates
from keibi.manager.certificates import ensure_certificates
from keibi.manager.composition import content_directory, make_manager, prepare_directory
from keibi.manager.config import ManagerConfig, load_config
from keibi.manager.keys import SecretBox, load_or_make_key


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("prot = 1", "config_key", ("'prot'", "did you mean port?")),
        ("colour = 1", "config_key", ("'colour'", "known are")),
        ("port = 0", "config_value", ("port",)),
        ("port = '8443'", "config_value", ("port",)),
        ("log_level = 'loud'", "config_value", ("log_level",)),
        ("state_directory = 'relative'", "config_value", ("state_directory",)),
        ("database_url = 'mysql://x'", "config_value", ("database_url",)),
        ("port =", "config_malformed", ("TOML",)),
        ("certificate_file = '/x'", "config_value", ("together",)),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_right(tmp_path, text, code, words):
    path = tmp_path / "manager.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(str(path))
    assert caught.value.code == code
    assert caught.value.where == str(path)
    for word in words:
        assert word in str(caught.value)


def test_settings_have_defaults_and_the_command_line_comes_first(tmp_path):
    assert load_config() == ManagerConfig()
    path = tmp_path / "manager.toml"
    path.write_text("port = 9000\nhost_names = ['manager.example']\n")
    config = load_config(str(path), state_directory=str(tmp_path), port=9001)
    assert (config.port, config.state_directory, config.host_names) == (9001, str(tmp_path), ("manager.example",))
    assert config.url == f"sqlite:///{tmp_path}/manager.sqlite3"
    with pytest.raises(InputError, match="No such file"):
        load_config(str(tmp_path / "absent.toml"))


def test_keys_are_made_once_and_only_the_manager_may_read_them(tmp_path):
    path = str(tmp_path / "key")
    key = load_or_make_key(path)
    assert load_or_make_key(path) == key
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    os.chmod(path, 0o644)
    with pytest.raises(RefusedError, match="others may read"):
        load_or_make_key(path)
    os.chmod(path, 0o600)
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(InputError, match="32 bytes"):
        load_or_make_key(path)
    with pytest.raises(TryLaterError, match="No such file"):
        load_or_make_key(str(tmp_path / "no" / "key"))


def test_a_sealed_secret_opens_for_its_owner_and_key_only():
    box = SecretBox(bytes(32))
    sealed = box.seal(b"secret", "alice")
    assert box.open(sealed, "alice") == b"secret"
    assert box.seal(b"secret", "alice") != sealed
    for other, owner, value in (
        (box, "bob", sealed),
        (SecretBox(b"k" * 32), "alice", sealed),
        (box, "alice", sealed[:-1] + b"x"),
    ):
        with pytest.raises(RefusedError):
            other.open(value, owner)


class TestCertificates:
    def test_are_made_once_and_name_this_computer(self, tmp_path):
        made = ensure_certificates(str(tmp_path), ["manager.example", "192.0.2.7"])
        before = pathlib.Path(made.certificate_file).read_bytes()
        assert ensure_certificates(str(tmp_path), ["manager.example"]) == made
        assert pathlib.Path(made.certificate_file).read_bytes() == before
        certificate = x509.load_pem_x509_certificate(before)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {"localhost", "manager.example"} <= set(names.get_values_for_type(x509.DNSName))
        addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
        assert {"127.0.0.1", "::1", "192.0.2.7"} <= addresses
        authority = x509.load_pem_x509_certificate(pathlib.Path(made.ca_file).read_bytes())
        certificate.verify_directly_issued_by(authority)
        assert stat.S_IMODE(os.stat(made.key_file).st_mode) == 0o600
        ssl.create_default_context(cafile=made.ca_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate_file, made.key_file)

    def test_a_new_name_makes_a_new_server_certificate_of_the_same_authority(self, tmp_path):
        made = ensure_certificates(str(tmp_path))
        authority = pathlib.Path(made.ca_file).read_text()
        before = pathlib.Path(made.certificate_file).read_text()
        ensure_certificates(str(tmp_path), ["other.example"])
        assert pathlib.Path(made.ca_file).read_text() == authority
        assert pathlib.Path(made.certificate_file).read_text() != before

    def test_are_renewed_before_they_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(certificates, "SERVER_DAYS", 50)
        first = ensure_certificates(str(tmp_path))
        before = pathlib.Path(first.certificate_file).read_text()
        monkeypatch.undo()
        renewed = ensure_certificates(str(tmp_path))
        assert pathlib.Path(renewed.certificate_file).read_text() != before
        assert renewed.ends_at > dt.datetime.now(dt.UTC) + dt.timedelta(days=300)

    def test_a_lost_or_foreign_authority_key_is_told(self, tmp_path):
        made = ensure_certificates(str(tmp_path / "a"))
        os.unlink(tmp_path / "a" / "ca.key")
        with pytest.raises(InputError, match="not its key"):
            ensure_certificates(str(tmp_path / "a"))
        assert os.path.exists(made.certificate_file)
        other = x509.load_pem_x509_certificate(pathlib.Path(ensure_certificates(str(tmp_path / "b")).ca_file).read_bytes())
        mine = x509.load_pem_x509_certificate(pathlib.Path(made.certificate_file).read_bytes())
        with pytest.raises((InvalidSignature, ValueError)):
            mine.verify_directly_issued_by(other)

    def test_a_name_that_no_certificate_can_hold_is_told(self, tmp_path):
        with pytest.raises(InputError, match="cannot be in a certificate"):
            ensure_certificates(str(tmp_path), ["x" * 70 + "é"])


def test_the_shipped_rules_are_found():
    assert os.path.isdir(os.path.join(content_directory(), "integrity_monitoring"))


def test_a_state_directory_that_others_may_write_is_refused(tmp_path):
    path = tmp_path / "state"
    path.mkdir()
    os.chmod(path, 0o777)
    with pytest.raises(RefusedError, match="others may write"):
        prepare_directory(str(path))


def test_a_state_directory_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TryLaterError) as caught:
        prepare_directory(str(tmp_path / "file" / "state"))
    assert "Not a directory" in caught.value.message
    assert caught.value.where == str(tmp_path / "file" / "state")


def test_a_superuser_of_postgresql_is_refused_since_row_security_would_not_bind_it(postgresql_server, tmp_path):
    url = postgresql_server.new_database().replace("keibi@", "postgres@")
    with pytest.raises(RefusedError, match="superuser"):
        make_manager(ManagerConfig(state_directory=str(tmp_path / "state"), database_url=url))


def test_a_database_that_is_away_is_told(tmp_path):
    url = f"postgresql://keibi@/x?host={tmp_path}"
    with pytest.raises(KeibiError) as caught:
        make_manager(ManagerConfig(state_directory=str(tmp_path / "state"), database_url=url))
    assert caught.value.code == "database_away"
