"""The measurements of the whole service, from their start to their end, with tiny numbers."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import unittest
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import footprint, steadiness


def measured(command: Callable[[Sequence[str]], int], *options: str) -> tuple[int, str, str]:
    """Its exit status, and what it has told on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = command(options)
        except SystemExit as end:
            status = int(end.code or 0)
    return status, out.getvalue(), err.getvalue()


def figures(out: str) -> dict[str, list[float]]:
    """The lines of a table: what stands before the figures, and these."""
    lines = (re.fullmatch(r'(.*?\S) {2,}([\d. %]+?)(?:  of .*)?', line)
             for line in out.splitlines())
    return {line[1]: [float(figure) for figure in re.findall(r'[\d.]+', line[2])]
            for line in lines if line}


class FootprintTest(unittest.TestCase):

    def setUp(self) -> None:
        self.enterContext(mock.patch.object(footprint, 'SETTLE_SECONDS', 0.1))

    def test_it_tells_of_start_memory_connections_and_imports_and_what_does_not_hold(self) -> None:
        status, out, err = measured(
            footprint.main, '--starts', '1', '--connections', '50', '--seconds', '0.2',
            '--transports', 'fast', '--ready-within', '0.001')
        told = figures(out)
        self.assertEqual([50], told['idle connections alive in the end, of 50'], err)
        for title, least, most in (
                ('ready after, s: median of 1', 0.05, 20),
                ('one process, MB: resident', 10, 500),
                ('one process, MB: proportional', 10, 500),
                ('each of 2 workers, MB: resident', 10, 500),
                ('each of 2 workers, MB: proportional', 5, 500),
                ('GET beside them, ms: p50', 0.05, 1000),
                ('GET beside them, ms: p99', 0.05, 5000)):
            with self.subTest(title):
                self.assertTrue(least < told[title][0] < most, out)
        self.assertLessEqual({'addrservice', 'tornado'}, told.keys(), out)
        self.assertEqual(100, told['all'][1])
        # No start is as fast as that; all else holds.
        self.assertEqual(1, status)
        self.assertRegex(err, r'core.*\n.*fast: ready after [\d.]+ s, not within 0\.001 s\n\Z')

    def test_imports_belong_to_the_package_that_ours_ask_for(self) -> None:
        lines = ['import time: self [us] | cumulative | imported package',
                 'import time:         5 |          5 |     json.decoder',
                 'import time:        20 |         25 |   yaml',
                 'import time:         3 |          3 |     addrservice.errors',
                 'import time:         7 |         10 |   addrservice.config',
                 'message="STARTING" port=1',
                 'import time:       100 |        135 | addrservice.tornado.server']
        self.assertEqual({'addrservice': 110, 'yaml': 25}, footprint.by_package(lines))


class SteadinessTest(unittest.TestCase):

    def setUp(self) -> None:
        self.enterContext(mock.patch.object(steadiness, 'LEAD_SECONDS', 0.2))

    def test_it_tells_of_the_spread_and_of_what_a_list_does_to_others(self) -> None:
        status, out, err = measured(
            steadiness.main, '--seconds', '0.2', '--rounds', '1', '--entries', '2000',
            '--read-rate', '0.2')
        self.assertEqual(0, status, err)
        told = figures(out)
        for title in ('get', 'list', 'put', 'post', 'delete', 'all', 'without a list',
                      'beside, of 2000 entries'):
            with self.subTest(title):
                p50, p99, ratio = told[title][:3]
                self.assertTrue(0 < p50 <= p99 < 5000, out)
                self.assertAlmostEqual(p99 / p50, ratio, delta=0.1 * ratio)
        self.assertRegex(out, r'(?m)^p99 beside the list is [\d.]+ times that without it')
        self.assertRegex(out, r'read were 0\.[1-9]\d* MB/s')
        self.assertIn('capacity: ', err)

    def test_a_list_that_ends_too_soon_is_no_measurement(self) -> None:
        status, _, err = measured(
            steadiness.main, '--seconds', '0.2', '--rounds', '1', '--entries', '1',
            '--mix', 'get', '--rate', '100', '--engine', 'memory')
        self.assertEqual(1, status)
        self.assertTrue(err.endswith('steadiness.py: the list has come to its end: it needs more '
                                     'entries, or a slower reader\n'), err)


class UnusableOptionsTest(unittest.TestCase):

    def test_they_are_refused_in_one_line(self) -> None:
        for script, *options in (
                (footprint, '--starts', '0'), (footprint, '--connections', '-1'),
                (footprint, '--connections', '1000000'),
                (footprint, '--seconds', 'nan'), (footprint, '--transports', 'slow'),
                (steadiness, '--rounds', '0'), (steadiness, '--entries', '-1'),
                (steadiness, '--read-rate', '0'), (steadiness, '--engine', 'postgres')):
            with self.subTest(script=script.__name__, options=options):
                status, out, err = measured(script.main, *options)
                self.assertEqual((2, ''), (status, out))
                self.assertRegex(err, rf'\A\w+\.py: [^\n]*{options[0]}[^\n]*\n\Z')


if __name__ == '__main__':
    unittest.main()
