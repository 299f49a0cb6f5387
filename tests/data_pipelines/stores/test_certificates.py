"""https:// from a server whose certificate an authority signed that only the test knows."""

import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.range_server import range_server

ROOT = Path(__file__).parents[3]
CONTENTS = b"0123456789"
READ = """
import sys
from data_pipelines.storage import Storage, StorageConfig
storage = Storage(StorageConfig(attempts=4, first_wait_seconds=0.01))
try:
    print(storage.read(sys.argv[1], 3, 4), storage.take_failures())
except OSError as error:
    print(type(error).__name__, error, storage.take_failures())
storage.close()
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with an authority's certificate, authority.pem, and one that it signed for localhost, server.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("the program openssl, which makes the certificates of this test, is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "server.cnf").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"req -x509 {key} -keyout authority.key -out authority.pem -days 2 -subj /CN=authority "
        "-addext keyUsage=critical,keyCertSign",
        f"req -new {key} -keyout server.key -out server.csr -subj /CN=localhost",
        "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 -extfile server.cnf "
        "-out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server(certificates):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    with range_server(tls) as server:
        server.files["a.tar"] = CONTENTS
        yield server


def read(address, **environment):
    """What a process says that reads from a server; it must have its authorities from the beginning."""
    told = subprocess.run(
        [sys.executable, "-c", READ, address],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def test_a_server_is_read_whose_authority_the_environment_names(server, certificates):
    address = server.address("a.tar")
    assert address.startswith("https://localhost")
    assert read(address, SSL_CERT_FILE=str(certificates / "authority.pem")) == f"{CONTENTS[3:7]} 0"


def test_a_server_that_nobody_vouches_for_is_refused_at_once(server):
    told = read(server.address("a.tar"))
    assert told.startswith(f"UnreadableError could not read {server.address('a.tar')}: the server's certificate is ")
    assert "unable to get local issuer certificate" in told and "SSL_CERT_FILE" in told
    assert told.endswith(" 0"), "it was tried again"


def test_a_certificate_for_another_name_is_refused(server, certificates):
    address = server.address("a.tar").replace("localhost", "127.0.0.1")
    told = read(address, SSL_CERT_FILE=str(certificates / "authority.pem"))
    assert "the server's certificate is refused" in told and "IP address mismatch" in told
