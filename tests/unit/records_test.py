"""Pages of records: what is told of many at once is what is told of each."""

from __future__ import annotations

import sys
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import given, strategies as st

from addrservice.database import records
from addrservice.database.records import (
    Columns, Record, Stored, are_nicknames, columns_of, decode_page, decode_record, is_nickname,
    is_version, new_nickname, new_version)

VERSION = '0123456789abcdef'
TEXTS = ('{"full_name":"Asha"}', '{"full_name":"\u00c4"}')
DAMAGED: tuple[Any, ...] = ('', '{', '{"full_name":7}', '[]', 'null', '{"full_name":"a\u0007"}',
                            None, 7)

ODD_NAMES = st.one_of(
    st.text(max_size=3), st.text('aZ9-', min_size=60, max_size=70), st.binary(max_size=2),
    st.none(), st.integers(0, 1))


def record(number: int, text: Any = TEXTS[0], version: Any = VERSION) -> Record:
    return Record(f'n{number}', version, text, f'place {number}')


def columns(*of: Record) -> Columns[Record]:
    """The same by column; where each lies is told by its name."""
    return Columns(lambda nickname, version, text: Record(
        nickname, version, text, f'place {nickname[1:]}'), *list(zip(*of))[:3])


class NamesTest(unittest.TestCase):
    @given(st.lists(ODD_NAMES, max_size=3))
    def test_many_are_names_if_each_is_one(self, names: list[Any]) -> None:
        each = [isinstance(name, str) and is_nickname(name) for name in names]
        self.assertEqual(all(each), are_nicknames(names), names)

    def test_what_is_made_new_is_one(self) -> None:
        self.assertTrue(are_nicknames([new_nickname() for _ in range(100)]))
        self.assertTrue(is_version(new_version()))


class ColumnsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.rows = [('a', 'v1', 'x'), ('b', 'v2', 'y'), ('c', 'v3', 'z')]
        self.entries = [Stored(*row) for row in self.rows]

    def test_they_are_a_sequence_of_what_is_in_them(self) -> None:
        columns = columns_of(self.rows)
        self.assertEqual(self.entries, list(columns))
        self.assertEqual((3, self.entries[1], self.entries[-1]),
                         (len(columns), columns[1], columns[-1]))
        self.assertEqual(self.entries[1:], list(columns[1:]))
        self.assertIn(self.entries[2], columns)
        with self.assertRaises(IndexError):
            columns[3]

    def test_of_nothing_there_is_none(self) -> None:
        self.assertEqual((0, []), (len(columns_of([])), list(columns_of([]))))


class DecodingTest(unittest.TestCase):
    def test_a_page_is_decoded_as_each_of_its_records(self) -> None:
        texts = [*TEXTS, TEXTS[0].encode()]  # some databases have either
        good = [record(number, text) for number, text in enumerate(texts * 30)]
        for page in (good, columns(*good)):
            decoded = decode_page(page)
            assert decoded is not None
            self.assertEqual([decode_record(each) for each in good], list(decoded))

    def test_a_page_with_damage_is_not_decoded_wherever_it_is(self) -> None:
        versions: tuple[Any, ...] = ('', VERSION[1:], VERSION.upper(), f'{VERSION} ', None, 7,
                                     VERSION.encode(), '\udcff' * 16, '\u0661' * 16)
        for damaged in [*(record(1, text) for text in DAMAGED),
                        *(record(1, version=version) for version in versions)]:
            for page in ([damaged], [damaged, record(2)], [record(0), damaged]):
                with self.subTest(damaged):
                    self.assertIsNone(decode_page(page))
                    self.assertIsNone(decode_page(columns(*page)))

    def test_a_page_that_would_take_long_is_left_for_who_gives_others_their_turn(self) -> None:
        page = [record(number) for number in range(3)]
        with mock.patch.object(records, 'MAX_DECODED_AT_ONCE', 3 * len(TEXTS[0])):
            self.assertIsNotNone(decode_page(page))
            self.assertIsNone(decode_page([*page, record(3)]))

    def test_the_longest_entries_are_decoded_too(self) -> None:
        text = f'{{"full_name":"{"x" * 512}","addresses":[{", ".join(["X"] * 20)}]}}'.replace(
            'X', '{"kind":"home","street_name":"' + 'y' * 200
            + '","pincode":1,"country":"IN"}')
        decoded = decode_page([record(1, text), record(2)])
        assert decoded is not None
        self.assertEqual([decode_record(record(1, text)), decode_record(record(2))],
                         list(decoded))


if __name__ == '__main__':
    unittest.main()
