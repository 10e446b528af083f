"""X.509 certificates of a run: a CA that exists while `gradless.peers.manifest` makes them, and one for every peer.

They only decide who may connect; what counts in a run is signed with the Ed25519 keys in the manifest. So the CA's key
is thrown away once the certificates are made, and whoever kept it could let strangers connect, no more.
"""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING, Any, Final

from gradless.errors import BadInput

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

EARLY: Final = datetime.timedelta(days=1)
"""So long before they are made certificates are valid: clocks of peers differ."""


def request(name: str, key: EllipticCurvePrivateKey) -> str:
    """Return a signing request (PEM) for a peer's TLS key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    return _pem(builder.sign(key, hashes.SHA256()))


def requested_key(pem: str) -> bytes:
    """Return the public TLS key (DER) of a signing request.

    Raises:
        BadInput: no request, one whose signature is wrong, or a key of another kind.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        if csr.is_signature_valid and isinstance(csr.public_key(), ec.EllipticCurvePublicKey):
            return public_der(csr.public_key())
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        pass
    raise BadInput("the request for a TLS certificate is damaged: ask the card's owner for it again")


def issue(peers: list[tuple[str, str, str]], *, days: int) -> tuple[str, list[str]]:
    """Return a new CA's certificate and one for each peer (PEM); the CA's key is gone when this returns.

    Args:
        peers: name, host or IP address, and signing request of each.
        days: that the certificates are valid.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca_key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    issuer = _subject("gradless run CA")

    def build(subject: x509.Name, public: Any, *, ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - EARLY)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        )

    certificates = []
    for name, host, pem in peers:
        public: Any = x509.load_pem_x509_csr(pem.encode()).public_key()
        builder = build(_subject(name), public, ca=False).add_extension(_alternatives(host), critical=False)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        certificates.append(_pem(builder.add_extension(usage, critical=False).sign(ca_key, hashes.SHA256())))
    return _pem(build(issuer, ca_key.public_key(), ca=True).sign(ca_key, hashes.SHA256())), certificates


def check(ca: str, certificate: str, name: str, public: bytes | None) -> None:
    """Refuse a certificate that would not let its owner into the run today.

    Args:
        ca: certificate of the run's CA, PEM.
        certificate: of the peer, PEM.
        name: that it must bear.
        public: TLS key (DER) that it must be for; None: any.

    Raises:
        BadInput: with what is wrong, such as a clock that is early.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        authority, own = (
            x509.load_pem_x509_certificate(ca.encode()),
            x509.load_pem_x509_certificate(certificate.encode()),
        )
        own.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise BadInput(f"the certificate of {name} is not one of this run's CA: ask for the manifest again") from None
    if own.subject != _subject(name) or (public is not None and public_der(own.public_key()) != public):
        raise BadInput(f"the certificate of {name} is for another name or key: make the manifest again from the cards")
    now = datetime.datetime.now(datetime.UTC)
    for one in (authority, own):
        if now < one.not_valid_before_utc:
            raise BadInput(
                f"the clock says {now:%Y-%m-%d %H:%M} UTC, and the certificate of {name} is not valid before "
                f"{one.not_valid_before_utc:%Y-%m-%d %H:%M}: set the clock"
            )
        if now > one.not_valid_after_utc:
            raise BadInput(
                f"the clock says {now:%Y-%m-%d %H:%M} UTC, and the certificate of {name} ended on "
                f"{one.not_valid_after_utc:%Y-%m-%d}: set the clock, or make a new manifest with init --continue"
            )


def private_pem(key: Any) -> bytes:
    """Return a private key as PKCS 8 in PEM, not encrypted."""
    from cryptography.hazmat.primitives import serialization as form

    pem: bytes = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    return pem


def public_der(key: Any) -> bytes:
    """Return a public key as DER."""
    from cryptography.hazmat.primitives import serialization as form

    der: bytes = key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    return der


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternatives(host: str) -> x509.SubjectAlternativeName:
    """Where the peer may be reached: TLS clients compare the host that they connected to."""
    from cryptography import x509

    try:
        return x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    except ValueError:
        return x509.SubjectAlternativeName([x509.DNSName(host)])


def _pem(signed: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    pem: bytes = signed.public_bytes(Encoding.PEM)
    return pem.decode()
