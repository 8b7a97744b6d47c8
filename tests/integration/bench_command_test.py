"""`run.py bench` from its start to its end, with the service alone: peers need their setup, but
for those that run on what the service is built on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR
from benchmarks.contest import environment, job
from benchmarks.contest.peers import peers_of
from benchmarks.contest.server import free_port, serving
from benchmarks.contest.stores import Store
from tests.support import DEADLINE


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f'/proc/{pid}/task').glob('*/children')
            for child in file.read_text().split()]


class BenchCommandTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def start(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, ROOT_DIR / 'run.py', 'bench', '--peers', 'addrservice', *options],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_the_service_does_the_job_and_is_measured_in_each_round(self) -> None:
        process = self.start('--rounds', '2', '--seconds', '0.1', '--connections', '4',
                             '--json', 'figures.json')
        out, err = process.communicate(timeout=2 * DEADLINE)
        self.assertEqual(0, process.returncode, err)
        for title in ('GET one', 'list of 100', 'PUT one', 'POST one'):
            self.assertRegex(out, rf'(?m)^\| addrservice \| {title} \| (≥ )?[1-9]\d* \|')
        told = json.loads((self.folder / 'figures.json').read_text())
        for figures in told['servers'][0]['workloads'].values():
            self.assertEqual(2, len(figures['rounds']))
            for figure in ('throughput', 'p99', 'generator'):
                self.assertGreater(figures[figure], 0)

    def test_ctrl_c_ends_it_and_its_server(self) -> None:
        process = self.start('--seconds', '60')
        deadline = time.monotonic() + DEADLINE
        while not (servers := children(process.pid)):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
        self.assertEqual((130, ''), (process.returncode, out), err)
        self.assertTrue(err.endswith('\nrun.py: interrupted\n'), err)
        self.assertNotIn('Traceback', err)
        self.assertFalse([pid for pid in servers if Path(f'/proc/{pid}').exists()])


class PeersOnTornadoTest(unittest.TestCase):
    def test_they_do_the_job_in_the_environment_of_the_service_too(self) -> None:
        for peer in peers_of('memory'):
            if peer.name in ('tornado', 'seed'):
                folder, port = Path(self.enterContext(tempfile.TemporaryDirectory())), free_port()
                with (self.subTest(peer.name),
                      mock.patch.object(environment, 'PYTHON', sys.executable),
                      serving(peer.start(port, Store('memory', None, folder)), port,
                              folder / 'log', frozenset()) as server):
                    job.check(peer, server, job.fill(server))


if __name__ == '__main__':
    unittest.main()
