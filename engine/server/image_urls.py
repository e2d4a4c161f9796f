"""Images as a request names them: data URLs always, http(s) and file URLs where allowed.

Owns what may be read and how much of it; every fault is an `ImageError`. An http(s) image comes from a
public address only, checked on the address that is connected to, and no redirect is followed.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit

from stagebeam.engine.errors import ImageError

FETCH_SECONDS = 10.0
_CHUNK_BYTES = 1 << 16


def read_image_url(
    url: str,
    *,
    max_bytes: int,
    allow_remote: bool = False,
    folder: Path | None = None,
    is_allowed_address: Callable[[str], bool] | None = None,
) -> bytes:
    """The encoded image that `url` names; blocks while it is fetched.

    max_bytes: of the encoded image
    folder:    file: URLs must name a file in it
    is_allowed_address: by IP address; None allows the public ones
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ImageError(f"the image URL cannot be read: {error}") from error
    if parts.scheme == "data":
        return _checked(_data(url), max_bytes)
    if parts.scheme in ("http", "https"):
        if not allow_remote:
            raise ImageError("http(s) image URLs are switched off here; send a data: URL")
        return _fetch(parts, max_bytes, is_allowed_address or is_public)
    if parts.scheme == "file":
        if folder is None:
            raise ImageError("file: image URLs are switched off here; send a data: URL")
        return _file(parts, folder, max_bytes)
    raise ImageError(
        f"an image URL must begin with data:, http:, https: or file:, got {url[:20]!r}"
    )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet's."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast


def _checked(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise ImageError(f"the image has more than {max_bytes} bytes; send a smaller one")
    return data


def _data(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise ImageError("a data: URL must be like data:image/png;base64,AAAA; it has no comma")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote(body) if "%" in body else body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the data: URL's base64 is damaged: {error}") from error


def _file(parts: SplitResult, folder: Path, max_bytes: int) -> bytes:
    if parts.netloc not in ("", "localhost"):
        raise ImageError("a file: URL must name a file of this machine: file:///folder/image.png")
    try:
        path = Path(unquote(parts.path)).resolve()
        if not (path.is_relative_to(folder.resolve()) and path.is_file()):
            raise ImageError("the file: URL names no file of the image folder")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("the file: URL cannot be read") from error
    return _checked(data, max_bytes)


def _fetch(parts: SplitResult, max_bytes: int, is_allowed: Callable[[str], bool]) -> bytes:
    ends_at = time.monotonic() + FETCH_SECONDS
    try:
        host, is_tls = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        address = _resolve(host, port, is_allowed)
        connection = _Connection(host, port, address, is_tls)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Accept": "image/*"})
            response = connection.getresponse()
            if response.status != 200:
                raise ImageError(
                    f"the image URL answered {response.status}, expected 200 (redirects are not "
                    "followed)"
                )
            data = b""
            while len(data) <= max_bytes and (chunk := response.read1(_CHUNK_BYTES)):
                data += chunk
                if time.monotonic() > ends_at:
                    raise ImageError(f"the image URL took more than {FETCH_SECONDS:g} s")
            return _checked(data, max_bytes)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"the image URL cannot be fetched: {error}") from error


def _resolve(host: str, port: int, is_allowed: Callable[[str], bool]) -> str:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_allowed(address):
            raise ImageError(f"the image URL's host {host!r} is not at a public address")
    return addresses[0]


class _Connection(http.client.HTTPConnection):
    """Connects to the address that was checked, whatever the name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, is_tls: bool) -> None:
        super().__init__(host, port, timeout=FETCH_SECONDS)
        self._address = address
        self._is_tls = is_tls

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), FETCH_SECONDS)
        if self._is_tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host)
