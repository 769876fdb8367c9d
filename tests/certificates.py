"""Certificates for tests, for 127.0.0.1."""

from __future__ import annotations

from pathlib import Path

import trustme


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a new certificate with that of its authority, and its key, as PEM files in a folder.

    A client trusts the first file.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(cert_file)
    authority.cert_pem.write_to_path(cert_file, append=True)
    certificate.private_key_pem.write_to_path(key_file)
    return cert_file, key_file
