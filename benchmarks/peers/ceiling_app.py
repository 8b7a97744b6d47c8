"""The ceiling of one Python process: uvloop and httptools, and answers made beforehand. It does
no part of the job, so nothing in Python that does it can be faster."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop


NO_CONTENT = b'HTTP/1.1 204 No Content\r\n\r\n'


def make_answer(status: str, body: bytes, *fields: str) -> bytes:
    head = '\r\n'.join([f'HTTP/1.1 {status}', 'Content-Type: application/json', *fields,
                        f'Content-Length: {len(body)}', '', ''])
    return head.encode() + body


class Ceiling(asyncio.Protocol):
    """Parses requests, and looks at their methods alone, and whether a list is asked for."""

    def __init__(self, one: bytes, some: bytes) -> None:
        self._answers = {b'GET': make_answer('200 OK', one), b'PUT': NO_CONTENT,
                         b'POST': make_answer('201 Created', b'', 'Location: /addresses/constant')}
        self._some = make_answer('200 OK', some)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._is_list = b'?' in url

    def on_message_complete(self) -> None:
        answer = self._some if self._is_list else self._answers[self._parser.get_method()]
        self._transport.write(answer)


async def main(port: int, one: bytes) -> None:
    members = (b'"%032x":%b' % (number, one) for number in range(100))
    some = b'{' + b','.join(members) + b'}'
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Ceiling(one, some), '127.0.0.1', port)
    await server.serve_forever()


if __name__ == '__main__':
    uvloop.run(main(int(sys.argv[1]), sys.argv[2].encode()))
