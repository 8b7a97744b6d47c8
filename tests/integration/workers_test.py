"""Several processes serve as one: on one port, through deaths, to one end, with one sum."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import unittest
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.config import complete_config
from addrservice.errors import ConfigError
from addrservice.tornado.workers import Board, FairSocket, config_of, count_of
from tests.integration.server_process_test import ENTRY, Client, ProcessTest
from tests.support import DEADLINE, ROOT, Answer, ServerProcess, on_each_transport

COUNT = 2


class WorkersTestCase(ProcessTest):
    @contextlib.contextmanager
    def workers(self, config: dict[str, Any] | None = None) -> Iterator[ServerProcess]:
        """Two of them, serving."""
        given = {'addr-db': {'sqlite': str(self.path('book.db'))}, 'admin': {'port': 0},
                 'server': {'processes': COUNT}, **(config or {})}
        with self.server(given) as server:
            server.wait_for(lambda: len(server.lines('STARTING')) == COUNT)
            yield server

    def pids(self, server: ServerProcess) -> list[int]:
        """The process ids of the workers."""
        assert server.process is not None
        pid = server.process.pid
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text()
        return [int(child) for child in children.split()]

    def ask_admin(self, server: ServerProcess, worker: int, method: str, path: str) -> Answer:
        """A request to the admin port of a worker."""
        line = [line for line in server.lines('STARTING') if line['worker'] == worker][-1]
        public, server.port = server.port, line['admin_port']
        try:
            return server.request(method, path)
        finally:
            server.port = public


@on_each_transport
class TogetherTest(WorkersTestCase):
    def test_both_serve_on_one_port_and_each_tells_the_sum(self) -> None:
        with self.workers() as server:
            for _ in range(40):
                self.assertEqual(server.request('POST', '/addresses', ENTRY).status, 201)
            count = 'http_server_request_duration_seconds_count' \
                    '{method="POST",route="/addresses",status="201"} 40.0'
            for worker in range(COUNT):
                server.wait_for(lambda: count in self.ask_admin(
                    server, worker, 'GET', '/metrics').body.decode())
                info = json.loads(self.ask_admin(server, worker, 'GET', '/info').body)
                self.assertIn(info['pid'], self.pids(server))
            self.assertEqual(len(server.request('GET', '/addresses').json()), 40)
            self.assertEqual(server.stop(), 0)

    def test_one_that_is_killed_is_started_again_and_nobody_waits_for_it(self) -> None:
        with self.workers() as server:
            killed, other = self.pids(server)
            os.kill(killed, signal.SIGKILL)
            self.assertEqual(server.request('GET', '/addresses').status, 200)
            server.wait_for(lambda: len(server.lines('STARTING')) == COUNT + 1)
            self.assertIn(other, self.pids(server))
            self.assertEqual(len(self.pids(server)), COUNT)
            text = self.ask_admin(server, 0, 'GET', '/metrics').body.decode()
            self.assertNotIn(f'pid="{killed}"', text)
            self.assertEqual(server.stop(), 0)

    def test_out_of_rotation_are_all_of_them_and_back(self) -> None:
        with self.workers() as server:
            self.ask_admin(server, 0, 'POST', '/drain')
            server.wait_for(lambda: self.ask_admin(
                server, 1, 'GET', '/readiness').status == 503)
            self.assertEqual({server.request('GET', '/readiness').status for _ in range(9)}, {503})
            self.ask_admin(server, 1, 'POST', '/undrain')
            server.wait_for(lambda: self.ask_admin(
                server, 0, 'GET', '/readiness').status == 200)

    def test_without_their_supervisor_they_end_by_themselves(self) -> None:
        with self.workers() as server:
            pids = self.pids(server)
            assert server.process is not None
            server.process.kill()
            server.process.wait()
            deadline = time.monotonic() + DEADLINE
            while any(Path(f'/proc/{pid}').exists() for pid in pids):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            self.assertEqual(len(server.lines('STOPPED')), COUNT)


@on_each_transport
class EndTest(WorkersTestCase):
    def test_clients_at_work_lose_no_request_when_all_end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number.name), self.workers() as server:
                clients = [Client(server.port) for _ in range(20)]
                for client in clients:
                    client.start()
                server.wait_for(lambda: all(client.answers for client in clients))
                self.assertEqual(server.stop(number), 0)
                for client in clients:
                    client.join()
                self.assertEqual([text for client in clients for text in client.broken], [])
                self.assertEqual(len(server.lines('STOPPED')), COUNT)

    def test_asked_twice_they_end_at_once(self) -> None:
        with self.workers({'drain': {'delay': 60}}) as server:
            assert server.process is not None
            server.process.terminate()
            server.wait_for(lambda: len(server.lines('SHUTTING DOWN')) == COUNT)
            self.assertEqual(server.stop(), 1)
            self.assertEqual(len(server.lines('KILLED')), COUNT)

    def test_one_that_dies_while_all_end_is_not_started_again_but_told(self) -> None:
        with self.workers({'drain': {'delay': 1}}) as server:
            assert server.process is not None
            killed = self.pids(server)[0]
            server.process.terminate()
            server.wait_for(lambda: len(server.lines('SHUTTING DOWN')) == COUNT)
            os.kill(killed, signal.SIGKILL)
            self.assertEqual(server.process.wait(DEADLINE), 1)
            self.assertEqual(len(server.lines('STARTING')), COUNT)


class StartTest(WorkersTestCase):
    def test_a_store_that_cannot_be_used_is_told_once_and_nobody_tries_again(self) -> None:
        folder = self.path('')
        folder.mkdir()
        complaint = r'^the server ended with 2: addrservice: \S+: addr-db.sqlite[^\n]*\n*$'
        with self.assertRaisesRegex(AssertionError, complaint):
            with self.workers({'addr-db': {'sqlite': str(folder)}}):
                pass

    def test_a_folder_that_counts_is_made_and_removed(self) -> None:
        folder = self.path('tmp')
        folder.mkdir()
        with unittest.mock.patch.dict(os.environ, TMPDIR=str(folder)):
            with self.workers() as server:
                self.assertEqual(len(list(folder.glob('addrservice-metrics-*'))), 1)
                server.stop()
        self.assertEqual(list(folder.iterdir()), [])

    def test_one_that_always_dies_is_not_started_all_the_time(self) -> None:
        starts = self.path('starts')
        program = ('import os, sys\n'
                   'from addrservice.tornado import workers\n'
                   'def work(worker):\n'
                   f'    with open({str(starts)!r}, "a") as file:\n'
                   '        file.write("x")\n'
                   '    os._exit(1)\n'
                   'sys.exit(workers.run_workers(2, [], work))\n')
        with subprocess.Popen([sys.executable, '-c', program], cwd=ROOT,
                              stderr=subprocess.DEVNULL) as process:
            time.sleep(2)
            process.terminate()
        self.assertIn(len(starts.read_text()), range(2, 7))


class FairTest(unittest.TestCase):
    def test_of_connections_that_wait_one_is_taken_at_a_time(self) -> None:
        plain = socket.create_server(('127.0.0.1', 0))
        address = plain.getsockname()
        listening = self.enterContext(FairSocket(fileno=plain.detach()))
        listening.setblocking(False)
        for _ in range(3):
            self.enterContext(socket.create_connection(address))
        given = [self.is_given(listening) for _ in range(10)]
        self.assertEqual(given, [True, False, True, False, True, *5 * [False]])
        self.enterContext(socket.create_connection(address))
        self.assertTrue(self.is_given(listening), 'whoever found nothing is first the next time')

    def is_given(self, listening: FairSocket) -> bool:
        """Whether a connection is accepted, and not left to others."""
        try:
            self.enterContext(listening.accept()[0])
        except BlockingIOError:
            return False
        return True


class ConfigTest(unittest.TestCase):
    def test_entries_in_memory_are_those_of_one_process(self) -> None:
        with self.assertRaisesRegex(ConfigError, '^server.processes: .* 3 address books'):
            count_of(complete_config({'server': {'processes': 3}}))
        self.assertEqual(count_of(complete_config({})), 1)

    def test_none_means_one_for_each_core(self) -> None:
        config = complete_config({'server': {'processes': 0}, 'addr-db': {'fs': '/x'}})
        with unittest.mock.patch.object(os, 'sched_getaffinity', return_value=set(range(5))):
            self.assertEqual(count_of(config), 5)

    def test_what_only_one_process_can_have_is_numbered(self) -> None:
        config = complete_config({'admin': {'port': 8081}, 'tracing': {'collectors': {
            'file': 'a/trace.json', 'ring': None}}})
        own = config_of(config, 2)
        self.assertEqual(own['admin']['port'], 8083)
        self.assertEqual(own['tracing']['collectors']['file']['path'], 'a/trace-2.json')
        self.assertEqual(config['admin']['port'], 8081)
        self.assertEqual(config_of(complete_config({}), 2), complete_config({}))

    def test_the_first_failure_is_the_status_of_all(self) -> None:
        board = Board(2)
        self.assertEqual((board.status, board.pids()), (0, []))
        self.assertTrue(board.fail(2))
        self.assertFalse(board.fail(1))
        self.assertEqual(board.status, 2)
        self.assertIsNone(board.enter(1))
        self.assertLess(board.enter(1) or 99, 1)
        self.assertEqual(board.pids(), [os.getpid()])


if __name__ == '__main__':
    unittest.main()
