"""Settings: what passes, and the one line for what does not."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from retinue_kit.config import SettingError
from retinue_local import model_choice, options

NO_PASSWORD = serialization.NoEncryption()


def refused(environ=None, **arguments):
    with pytest.raises(SettingError) as caught:
        options.build(environ or {}, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def certify(cert, key, encryption=NO_PASSWORD):
    private = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mesh")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, private.public_key(), 1, now, now + timedelta(days=1))
    pem = serialization.Encoding.PEM
    cert.write_bytes(builder.sign(private, hashes.SHA256()).public_bytes(pem))
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))


def test_defaults_need_nothing_set():
    found = options.build({"HOME": "/home/anna"})
    assert (found.host, found.port, found.sample_percent) == ("127.0.0.1", 8080, 100.0)
    assert found.runtimes == "openclaw,light"
    assert 1 <= found.workers <= 2
    assert found.model is None


def test_arguments_come_before_the_environment(tmp_path):
    environ = {"RETINUE_PORT": "1", "RETINUE_WORKERS": "3", "RETINUE_STATE_DIR": "/x"}
    found = options.build(environ, port=2, workers=4, state_dir=tmp_path)
    assert (found.port, found.workers, found.state_dir) == (2, 4, tmp_path)
    found = options.build(environ)
    assert (found.port, found.workers, str(found.state_dir)) == (1, 3, "/x")


@pytest.mark.parametrize("text", ["x", "-1", "65536", "1.5"])
def test_a_port_is_a_number_in_range(text):
    assert "RETINUE_PORT" in refused({"RETINUE_PORT": text})


def test_other_numbers_are_checked_too():
    assert "RETINUE_WORKERS" in refused({"RETINUE_WORKERS": "0"})
    assert "RETINUE_TRACE_SAMPLE_PERCENT" in refused({"RETINUE_TRACE_SAMPLE_PERCENT": "101"})
    assert options.build({"RETINUE_TRACE_SAMPLE_PERCENT": "0.5"}).sample_percent == 0.5


@pytest.mark.parametrize("name", ["RUNTIMES", "RETINUE_RUNTIMES"])
def test_runtimes_are_named_in_the_order_that_they_are_fallen_back_to(name):
    for text in ("light", "openclaw", "light,openclaw"):
        assert options.build({name: text}).runtimes == text
    assert options.build({name: " light, openclaw ,light"}).runtimes == "light,openclaw"
    for text in ("nonsense", "light,nonsense", ","):
        assert "this version has openclaw and light" in refused({name: text})


def test_plain_http_is_for_loopback_only():
    assert options.build({"RETINUE_HOST": "::1"}).host == "::1"
    assert options.build({"RETINUE_HOST": "localhost"}).host == "127.0.0.1"
    assert "plain HTTP" in refused({"RETINUE_HOST": "0.0.0.0"})
    assert "RETINUE_HOST" in refused({"RETINUE_HOST": "example.org"})


def test_a_certificate_needs_its_key_and_both_must_be_readable(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    assert "cannot be read" in refused({"RETINUE_TLS_CERT": str(cert), "RETINUE_TLS_KEY": str(key)})
    cert.write_text("-----BEGIN CERTIFICATE-----\n")
    assert "together" in refused({"RETINUE_TLS_CERT": str(cert)})
    key.write_text("no key")
    assert "not a PEM file" in refused({"RETINUE_TLS_CERT": str(cert), "RETINUE_TLS_KEY": str(key)})
    certify(cert, key)
    found = options.build({"RETINUE_TLS_CERT": str(cert), "RETINUE_TLS_KEY": str(key), "RETINUE_HOST": "0.0.0.0"})
    assert (found.tls_cert, found.tls_key, found.host) == (cert, key, "0.0.0.0")


def test_a_certificate_and_another_ones_key_are_refused(tmp_path):
    cert, key, other = (tmp_path / name for name in ("cert.pem", "key.pem", "other.pem"))
    certify(cert, other)
    certify(cert, key)
    for first, second in ((cert, other), (key, key), (key, cert)):
        said = refused({"RETINUE_TLS_CERT": str(first), "RETINUE_TLS_KEY": str(second)})
        assert "not a certificate and its key" in said
    certify(cert, key, serialization.BestAvailableEncryption(b"secret"))
    assert "without a password" in refused({"RETINUE_TLS_CERT": str(cert), "RETINUE_TLS_KEY": str(key)})


def test_the_model_that_is_set_is_taken():
    environ = {"RETINUE_MODEL_BASE_URL": "http://127.0.0.1:1/v1/", "RETINUE_MODEL": "m", "OPENAI_API_KEY": "secret"}
    found = options.build(environ).model
    assert (found.base_url, found.model, found.api_key) == ("http://127.0.0.1:1/v1", "m", "")
    assert "secret" not in found.note


def test_the_usual_variables_are_the_fallback():
    found = model_choice.from_settings({"OPENAI_API_KEY": "k", "OPENAI_MODEL": "gpt"})
    assert (found.base_url, found.model, found.api_key) == ("https://api.openai.com/v1", "gpt", "k")
    found = model_choice.from_settings({"OPENAI_BASE_URL": "http://host:9/v1", "RETINUE_MODEL": "mine"})
    assert (found.base_url, found.model) == ("http://host:9/v1", "mine")
    assert model_choice.from_settings({}) is None


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host/v1", "http:///v1", "http://host", "http://host/v1?x=1", "http://h:x/v1"]
)
def test_a_base_url_is_an_address_that_ends_in_v1(url):
    assert "RETINUE_MODEL_BASE_URL" in refused({"RETINUE_MODEL_BASE_URL": url, "RETINUE_MODEL": "m"})


def test_a_model_without_an_address_is_a_mistake():
    assert "RETINUE_MODEL_BASE_URL is not set" in refused({"RETINUE_MODEL": "m"})
    assert "RETINUE_MODEL_BASE_URL is not set" in refused({"RETINUE_MODEL_API_KEY": "k"})


async def test_a_name_that_is_missing_and_cannot_be_asked_for_is_told():
    choice = model_choice.from_settings({"RETINUE_MODEL_BASE_URL": "http://127.0.0.1:1/v1"})
    with pytest.raises(SettingError, match="RETINUE_MODEL is not set"):
        await model_choice.complete(choice)
