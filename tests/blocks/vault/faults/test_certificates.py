"""A Vault is trusted by its own authority if it has one, and by no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypedDict

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from blocks.errors import UnreachableError
from sandbox.server import running
from tests.blocks.vault.faults.conftest import StandIn


class Certified(TypedDict):
    """The files that a server needs for https."""

    certfile: str
    keyfile: str


class Authority:
    """A certificate authority for one test."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a private authority")])
        basic = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = self._build(self._key, self._name).add_extension(basic, critical=True)
        self._signed = self._certificate.sign(self._key, hashes.SHA256())
        self.pem = self._signed.public_bytes(serialization.Encoding.PEM).decode()

    def _build(self, key: ec.EllipticCurvePrivateKey, name: x509.Name) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(identifier, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def certify_loopback(self) -> Certified:
        """Write a certificate for 127.0.0.1 and its key to files."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vault")])
        names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
        certificate = self._build(key, name).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        (self._home / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        (self._home / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return Certified(certfile=str(self._home / "cert.pem"), keyfile=str(self._home / "key.pem"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that is not trusted by default."""
    return Authority(tmp_path)


async def test_a_certificate_that_is_not_trusted_is_named(authority: Authority) -> None:
    """A host with an untrusted certificate gets no request, and the error says why."""
    vault = StandIn()
    with running(vault.app, **authority.certify_loopback()) as url:
        secret = vault.secret(url=url)

        with pytest.raises(UnreachableError, match="certificate is not trusted") as failed:
            await secret.read_content()

        assert failed.value.outcome_unknown is False
        assert vault.requests == []
        await secret.aclose()


@pytest.mark.parametrize("joint", ["\n", " ", ""], ids=["as it is", "pasted with spaces", "pasted in one line"])
async def test_a_private_authority_is_trusted(authority: Authority, joint: str) -> None:
    """With the authority's certificate the host is trusted, even if a form has removed the line breaks."""
    vault = StandIn()
    with running(vault.app, **authority.certify_loopback()) as url:
        secret = vault.secret(url=url, ca_certificate=authority.pem.replace("\n", joint))

        held = await secret.read_content()

        assert held.version == 0
        await secret.aclose()


async def test_a_private_authority_is_the_only_one_trusted(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither public authorities nor those of the environment count for a Vault with its own authority."""
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    (tmp_path / "bundle.pem").write_text(other.pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "bundle.pem"))
    vault = StandIn()
    with running(vault.app, **other.certify_loopback()) as url:
        secret = vault.secret(url=url, ca_certificate=authority.pem)

        with pytest.raises(UnreachableError, match="certificate is not trusted"):
            await secret.read_content()

        await secret.aclose()
