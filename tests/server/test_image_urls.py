"""Image URLs: what is read, and all that is refused."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stagebeam.engine.errors import ImageError
from stagebeam.engine.server import image_urls
from stagebeam.engine.server.image_urls import is_public, read_image_url

DATA = b"\x89PNG" * 10


class Images(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
            return
        self.send_response(200 if self.path.startswith("/image.png") else 404)
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Images)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_data_urls() -> None:
    encoded = base64.b64encode(DATA).decode()
    for url in (
        f"data:image/png;base64,{encoded}",
        f"DATA:;BASE64,{encoded}",
        f"data:image/png;base64,{encoded.replace('=', '%3D')}",
    ):
        assert read_image_url(url, max_bytes=100) == DATA
    assert read_image_url("data:,a%20b", max_bytes=100) == b"a b"
    with pytest.raises(ImageError, match="more than 39 bytes"):
        read_image_url(f"data:image/png;base64,{encoded}", max_bytes=39)


def test_remote_images(host: str) -> None:
    def read(path: str, max_bytes: int = 100) -> bytes:
        return read_image_url(
            host + path,
            max_bytes=max_bytes,
            allow_remote=True,
            is_allowed_address=lambda address: address == "127.0.0.1",
        )

    assert read("/image.png?size=1") == DATA
    with pytest.raises(ImageError, match="more than 39 bytes"):
        read("/image.png", 39)
    with pytest.raises(ImageError, match="answered 302"):
        read("/redirect")
    with pytest.raises(ImageError, match="answered 404"):
        read("/other")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
def test_addresses_of_this_machine_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match=r"not at a public address|cannot be fetched"):
        read_image_url(f"http://{name}:1/x.png", max_bytes=100, allow_remote=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *((address, False) for address in ("10.0.0.1", "192.168.1.1", "172.16.0.1", "127.0.0.1")),
        *((address, False) for address in ("169.254.169.254", "100.64.0.1", "0.0.0.0")),
        *((address, False) for address in ("::1", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1")),
        *((address, False) for address in ("224.0.0.1", "255.255.255.255", "ff02::1")),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) is expected


def test_a_slow_host_is_given_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_urls, "FETCH_SECONDS", -1.0)
    with pytest.raises(ImageError, match=r"took more than|cannot be fetched"):
        read_image_url(
            f"{host}/image.png",
            max_bytes=100,
            allow_remote=True,
            is_allowed_address=lambda address: True,
        )


@pytest.mark.parametrize("url", ["http://", "http://a b/", "http://x:99999/", "http://%00/x"])
def test_broken_addresses(url: str) -> None:
    with pytest.raises(ImageError):
        read_image_url(url, max_bytes=100, allow_remote=True, is_allowed_address=lambda a: False)


def test_files(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a b.png").write_bytes(DATA)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")

    def read(path: str, max_bytes: int = 100) -> bytes:
        return read_image_url(f"file://{path}", max_bytes=max_bytes, folder=folder)

    assert read(f"{folder}/a%20b.png") == DATA
    with pytest.raises(ImageError, match="more than"):
        read(f"{folder}/a%20b.png", 39)
    for path in (
        f"{tmp_path}/secret",
        f"{folder}/../secret",
        f"{folder}/%2e%2e/secret",
        f"{folder}/link",
        f"{folder}/none",
        f"{folder}",
        f"{folder}/%00",
    ):
        with pytest.raises(ImageError, match=r"no file of the image folder|cannot be read"):
            read(path)
    with pytest.raises(ImageError, match="this machine"):
        read_image_url("file://elsewhere/x", max_bytes=100, folder=folder)
