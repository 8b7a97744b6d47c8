"""What waits in a tally is counted as if it had not waited, once, whoever looks and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.samples import Sample

from addrservice import MULTIPROCESS
from addrservice.utils.tallies import BeforeCollecting, Tallies, Tally, observe_all
from tests.support import DEADLINE, ROOT

BOUNDS = (0, .001, .0025, 1, 10)
VALUES = (.001, .0011, .0025, 0, 0, 5, 10, 10.5, 1e9, float('inf'), .002, -1)

SHARED = f'''
import json, os
from prometheus_client import Histogram
from addrservice import MULTIPROCESS
from addrservice.utils.exposition import sum_of_all
from addrservice.utils.tallies import observe_all
BOUNDS = {BOUNDS}
VALUES = [*map(float, {tuple(map(str, VALUES))})]
one_by_one = Histogram('one', 'It.', ('of',), buckets=BOUNDS).labels('x')
together = Histogram('all', 'It.', ('of',), buckets=BOUNDS).labels('x')
for value in VALUES:
    one_by_one.observe(value)
observe_all(together, VALUES[:5], ['a', None, 'b', 'c', 'd'], [1, 2, 3, 4, 5])
observe_all(together, VALUES[5:])
told = {{metric.name: {{str([sample.name.partition('_')[2], sorted(sample.labels.items())]):
                        sample.value for sample in metric.samples}}
        for metric in sum_of_all(os.environ[MULTIPROCESS]).collect()}}
print(json.dumps(told))
'''


class ObserveTest(unittest.TestCase):
    """Of the library's own: its private parts may change with a new version."""

    def setUp(self) -> None:
        registry = CollectorRegistry()
        self.family = Histogram('them', 'Them.', ('of',), registry=registry, buckets=BOUNDS)
        self.one_by_one, self.together = self.family.labels('one'), self.family.labels('all')

    def told(self, of: str) -> Sequence[Sample]:
        # When each was made does not matter, and is not told everywhere.
        return [sample._replace(labels={**sample.labels, 'of': ''})
                for sample in list(self.family.collect())[0].samples
                if sample.labels['of'] == of and not sample.name.endswith('_created')]

    def test_all_at_once_are_as_good_as_one_by_one(self) -> None:
        for value in VALUES:
            self.one_by_one.observe(value)
        observe_all(self.together, VALUES[:5])
        observe_all(self.together, VALUES[5:])
        observe_all(self.together, [])
        self.assertEqual(self.told('all'), self.told('one'))

    def test_the_newest_of_a_bucket_is_its_example_with_its_own_time(self) -> None:
        trace_ids = ['a', 'b', None, 'c', None]
        observe_all(self.together, [.002, .0021, .0022, 3, 20], trace_ids, [11.5, 12, 13, 14, 15])
        observe_all(self.together, [3, .0005], [None, 'd'], [16, 17])
        examples = {sample.labels['le']: sample.exemplar for sample in self.told('all')
                    if sample.exemplar}
        self.assertEqual({le: tuple(example) for le, example in examples.items()}, {
            '0.0025': ({'trace_id': 'b'}, .0021, 12), '10.0': ({'trace_id': 'c'}, 3, 14),
            '0.001': ({'trace_id': 'd'}, .0005, 17)})

    def test_so_they_are_where_processes_share_what_they_count(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, '-c', SHARED], cwd=ROOT, text=True, check=True,
                                  stdout=subprocess.PIPE, env={**os.environ, MULTIPROCESS: folder})
        told = json.loads(done.stdout)
        self.assertEqual(told['all'], told['one'])
        self.assertIn(len(VALUES), told['all'].values())


class TallyTest(unittest.TestCase):
    def setUp(self) -> None:
        self.counted: list[int] = []
        self.tally = Tally(self.counted.extend)

    def test_what_waits_is_counted_once_and_in_order(self) -> None:
        self.tally.extend([1, 2])
        self.tally.pour()
        self.tally.append(3)
        self.tally.pour()
        self.assertEqual((self.counted, self.tally), ([1, 2, 3], []))

    def test_where_nothing_waits_nothing_is_counted(self) -> None:
        tally: Tally[int] = Tally(lambda taken: self.fail(f'It was called with {taken}'))
        tally.pour()

    def test_what_comes_while_others_are_counted_is_for_the_next_time(self) -> None:
        """Of the same thread: a finalizer may end a span anywhere, and must not wait for itself."""
        def count(taken: Sequence[int]) -> None:
            self.counted.extend(taken)
            if len(self.counted) < 9:
                tally.append(len(self.counted))
                tally.pour()

        tally = Tally(count)
        tally.append(0)
        tally.pour()
        self.assertEqual((self.counted, tally), ([0], [1]))
        tally.pour()
        self.assertEqual((self.counted, tally), ([0, 1], [2]))

    def test_what_comes_just_when_others_are_taken_is_not_lost(self) -> None:
        class Busy(Tally[int]):
            def __getitem__(self, place: Any) -> Any:
                taken = super().__getitem__(place)
                self.append(9)
                return taken

        tally = Busy(self.counted.extend)
        tally.append(1)
        tally.pour()
        self.assertEqual((self.counted, list(tally)), ([1], [9]))

    def test_who_looks_waits_for_another_who_counts(self) -> None:
        begun, may_end = threading.Event(), threading.Event()

        def count(taken: Sequence[int]) -> None:
            begun.set()
            may_end.wait(DEADLINE)
            self.counted.extend(taken)

        tallies: Tallies[str, int] = Tallies(
            lambda key: tallies.setdefault(key, Tally(count)))
        tallies['a'].append(1)
        other = threading.Thread(target=tallies['a'].pour)
        other.start()
        self.addCleanup(other.join)
        self.assertTrue(begun.wait(DEADLINE))
        tallies['a'].append(2)
        threading.Timer(0.05, may_end.set).start()
        tallies.pour()
        self.assertEqual(self.counted, [1, 2])

    def test_nothing_is_lost_or_counted_twice_whoever_observes_and_looks_meanwhile(self) -> None:
        threads, each = 4, 20_000
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        self.addCleanup(sys.setswitchinterval, interval)

        def observe(first: int) -> None:
            for number in range(first, first + each):
                self.tally.append(number)
                if len(self.tally) >= 10:
                    self.tally.pour(wait=number % 7 == 0)

        running = [threading.Thread(target=observe, args=(each * number,))
                   for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        self.tally.pour(wait=True)
        self.assertEqual(len(self.counted), threads * each)
        self.assertEqual(set(self.counted), set(range(threads * each)))


class CollectTest(unittest.TestCase):
    def test_a_registry_that_is_asked_has_it_done_first(self) -> None:
        for registry in (CollectorRegistry(), CollectorRegistry(auto_describe=True)):
            gauges: list[Gauge] = []
            registry.register(BeforeCollecting(lambda: gauges[0].inc()))
            gauges = [Gauge('it', 'It.', registry=registry)]
            self.assertEqual(registry.get_sample_value('it'), 1)
            self.assertEqual(registry.get_sample_value('it'), 2)


if __name__ == '__main__':
    unittest.main()
