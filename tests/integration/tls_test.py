"""The public port speaks HTTPS where the configuration has a certificate, and nothing else then."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import sys
import time
import unittest
from pathlib import Path
from typing import ClassVar

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.errors import ConfigError
from addrservice.tornado.listening import tls_of
from tests.support import DEADLINE, ROOT, ServerProcess, on_each_transport, read_to_end

FILES = {'certificate': str(ROOT / 'tests/tls/certificate.pem'),
         'key': str(ROOT / 'tests/tls/key.pem')}
"""Of a server that calls itself localhost; nobody outside these tests trusts it."""

HANDSHAKE_SECONDS = 0.5


class TLSServerProcess(ServerProcess):
    """A server process that is asked by HTTPS."""

    def http_connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPSConnection(
            'localhost', self.port, timeout=DEADLINE,
            context=ssl.create_default_context(cafile=FILES['certificate']))


@on_each_transport
class TLSTest(unittest.TestCase):
    server: ClassVar[ServerProcess]

    @classmethod
    def setUpClass(cls) -> None:
        cls.server = cls.enterClassContext(TLSServerProcess({
            'server': {'tls': FILES, 'header-timeout': HANDSHAKE_SECONDS}}))

    def test_requests_on_one_connection_are_answered(self) -> None:
        with contextlib.closing(self.server.http_connection()) as connection:
            statuses = []
            for body in (b'{"full_name": "x"}', b'{', b'x' * 200_000):
                connection.request('POST', '/addresses', body)
                with connection.getresponse() as response:
                    response.read()
                statuses.append(response.status)
        self.assertEqual(statuses, [201, 400, 413])

    def test_a_long_answer_arrives_whole(self) -> None:
        for _ in range(300):
            self.server.request('POST', '/addresses', '{"full_name": "%s"}' % ('x' * 500))
        self.assertGreater(len(self.server.request('GET', '/addresses').json()), 299)

    def test_who_does_not_speak_tls_gets_no_answer_and_disturbs_nobody(self) -> None:
        answer = self.server.send(b'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
        self.assertNotIn(b'HTTP/1.1 200', answer)
        self.assertEqual(self.server.request('GET', '/healthz').status, 200)
        self.assertEqual(self.server.lines('Uncaught exception'), [])
        self.assertFalse([line for line in self.server.lines() if line['level'] == 'ERROR'])

    def test_who_says_nothing_is_cut_off_in_time(self) -> None:
        began = time.monotonic()
        with self.server.connect() as connection:
            read_to_end(connection)
        self.assertGreater(time.monotonic() - began, HANDSHAKE_SECONDS / 2)
        self.assertLess(time.monotonic() - began, DEADLINE / 2)

    def test_old_versions_of_tls_are_refused(self) -> None:
        context = ssl.create_default_context(cafile=FILES['certificate'])
        self.assertGreaterEqual(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        with contextlib.closing(socket.create_connection(
                ('127.0.0.1', self.server.port), DEADLINE)) as plain:
            with context.wrap_socket(plain, server_hostname='localhost') as connection:
                self.assertIn(connection.version(), ('TLSv1.2', 'TLSv1.3'))


class ConfigTest(unittest.TestCase):
    def test_files_that_are_no_certificate_and_key_are_named(self) -> None:
        for changed in ({'certificate': '/nowhere.pem'}, {'key': FILES['certificate']},
                        {'certificate': str(ROOT / 'README.md')}):
            with self.subTest(changed=changed):
                with self.assertRaisesRegex(ConfigError, r'^server\.tls: .*: \S') as raised:
                    tls_of({'tls': {**FILES, **changed}})
                self.assertIn(next(iter(changed.values())), str(raised.exception))

    def test_without_the_section_there_is_none(self) -> None:
        self.assertIsNone(tls_of({}))


if __name__ == '__main__':
    unittest.main()
