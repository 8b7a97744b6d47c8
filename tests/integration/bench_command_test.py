"""`run.py bench` from its start to its end, with the service alone: peers need their setup."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice import ROOT_DIR
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
        for title in ('GET one', 'list of 100', 'POST one'):
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


if __name__ == '__main__':
    unittest.main()
