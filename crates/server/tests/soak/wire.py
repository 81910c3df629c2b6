"""A small HTTP client that can also misbehave: read slowly, leave, say half a request."""

import asyncio
import json
import socket
import struct


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


def request(path, body=None):
    """The bytes of a request."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Client:
    """A connection that is kept, and made again when it breaks."""

    def __init__(self, port):
        self.port, self.stream = port, None

    async def open(self, receive_buffer=None):
        made = socket.socket()
        made.setblocking(False)
        if receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        self.stream = await asyncio.open_connection(sock=made, limit=1 << 12 if receive_buffer else 1 << 20)
        return self

    async def send(self, data):
        self.stream[1].write(data)
        await self.stream[1].drain()

    async def ask(self, path, body=None):
        if self.stream is None:
            await self.open()
        try:
            await self.send(request(path, body))
            return await self.answer()
        except BaseException:
            self.close()
            raise

    async def answer(self):
        reader = self.stream[0]
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = b""
        if "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        return Answer(int(head[0].split()[1]), headers, body)

    def close(self, rudely=False):
        if self.stream is None:
            return
        if rudely:
            # A reset, as from a machine that is gone.
            made = self.stream[1].get_extra_info("socket")
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream[1].close()
        self.stream = None
