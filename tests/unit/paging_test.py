"""The query of a listing: what is understood, what is refused, and the cursors in its links."""

from __future__ import annotations

import base64
import string
import sys
import unittest
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import given, settings, strategies as st
from tornado.web import HTTPError

from addrservice.database.records import new_nickname
from addrservice.tornado.paging import CHECK_SIZE, MAX_LIMIT, Page, make_cursor, read_cursor

ALL_IDS = st.text(st.sampled_from(string.ascii_letters + string.digits + '-'),
                  min_size=1, max_size=64)
URL_ALPHABET = string.ascii_letters + string.digits + '-_'
CURSOR = make_cursor('a-b')

REFUSED_LIMITS = [
    b'', b'0', b'00', b'1001', b'9999', b'10000', b'00001', b'-1', b'+1', b' 1', b'1 ', b'1\n',
    b'1.0', b'1e2', b'0x10', b'1_0', b'1,000', b'ten', b'all', b'9' * 5000, b'\xd9\xa1',
    b'\xef\xbc\x91', b'\xc2\xb2', b'\xff', b'\0', b'1\0', b'None', b'true', b'"1"', b'1;2']

REFUSED_COUNTS = [b'', b'1', b'0', b'yes', b'True', b'TRUE', b' true', b'true ', b'true\n', b'\xff',
                  b'truefalse', b'null']

REFUSED_CURSORS = [
    '', ' ', '=', 'A', 'AA', 'AAA', 'AAAA', 'a-b', 'x' * 8000, '\0', '\xe9', '\u0661', '\ufffd',
    '{}', '..', '%00', 'null', '0', '-1', "' OR 1=1", '*', '\ud800', CURSOR + '\u0661']


def query(**arguments: bytes) -> Page:
    return Page.of({name: [value] for name, value in arguments.items()})


def forged(nickname: str, check: bytes = b'') -> str:
    """A cursor that somebody else has made."""
    data = (check or bytes(CHECK_SIZE)) + nickname.encode()
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()


class PageTests(unittest.TestCase):
    def assert_refused(self, name: str, *values: bytes) -> None:
        with self.assertRaises(HTTPError) as raised:
            Page.of({name: list(values)})
        self.assertEqual(raised.exception.status_code, 400)
        self.assertRegex(raised.exception.get_message() or '', f'^{name}: ')

    def test_without_a_query_the_whole_book_is_asked_for(self) -> None:
        self.assertEqual(Page.of({}), Page(None, None, False))

    def test_each_argument_is_read(self) -> None:
        self.assertEqual(query(limit=b'10', cursor=CURSOR.encode(), count=b'true'),
                         Page(10, 'a-b', True))
        self.assertEqual(query(cursor=CURSOR.encode()), Page(None, 'a-b', False))
        self.assertEqual(query(count=b'true'), Page(None, None, True))
        self.assertEqual(query(count=b'false'), Page(None, None, False))

    def test_other_arguments_are_ignored(self) -> None:
        self.assertEqual(
            Page.of({'limits': [b'x'], 'Limit': [b'x', b'y'], '': [b''], 'l\xefmit': [b'\xff'],
                     'limit ': [b'0'], 'offset': [b'-1'], 'limit': [b'1']}), Page(1, None, False))

    def test_a_limit_may_be_any_number_up_to_the_largest(self) -> None:
        for number in (*range(1, 12), MAX_LIMIT - 1, MAX_LIMIT):
            self.assertEqual(query(limit=b'%d' % number).limit, number)

    def test_another_limit_is_refused(self) -> None:
        for value in REFUSED_LIMITS:
            with self.subTest(value):
                self.assert_refused('limit', value)

    def test_a_count_is_wanted_or_not_and_nothing_else(self) -> None:
        for value in REFUSED_COUNTS:
            with self.subTest(value):
                self.assert_refused('count', value)

    def test_an_argument_that_stands_twice_is_refused_also_if_it_says_the_same(self) -> None:
        for name, value in (('limit', b'2'), ('cursor', CURSOR.encode()), ('count', b'true')):
            for values in ((value, value), (value, b''), (value,) * 50):
                with self.subTest(name, values=values):
                    self.assert_refused(name, *values)

    def test_a_cursor_that_is_none_is_refused(self) -> None:
        for value in (b'', b'x', b'\xff', CURSOR.encode() + b'=', CURSOR.encode() + b'\xff'):
            with self.subTest(value):
                self.assert_refused('cursor', value)

    def test_a_message_does_not_quote_what_was_sent(self) -> None:
        for name in ('limit', 'cursor', 'count'):
            with self.assertRaises(HTTPError) as raised:
                Page.of({name: [b'secret %s']})
            self.assertNotIn('secret', str(raised.exception))

    @settings(deadline=None)
    @given(st.dictionaries(st.sampled_from(('limit', 'cursor', 'count', 'x')),
                           st.lists(st.binary(max_size=8), max_size=2)))
    def test_whatever_is_sent_is_understood_or_refused(self, arguments: dict[str, list[bytes]]
                                                       ) -> None:
        try:
            page = Page.of(arguments)
        except HTTPError as error:
            self.assertEqual(error.status_code, 400)
        else:
            self.assertIn(page.limit, (None, *range(1, MAX_LIMIT + 1)))
            self.assertIsNone(page.after)  # nobody finds a cursor by chance


class LinkTests(unittest.TestCase):
    def test_a_link_asks_for_as_many_behind_the_last(self) -> None:
        self.assertEqual(Page(7, None, False).link_to_next('/addresses', 'a-b'),
                         f'</addresses?limit=7&cursor={CURSOR}>; rel="next"')

    def test_a_link_keeps_the_path_that_was_asked_for(self) -> None:
        for path in ('/addressbook', '/addresses/', '/addressbook/'):
            link = Page(7, 'x', True).link_to_next(path, 'a-b')
            self.assertTrue(link.startswith(f'<{path}?limit=7&cursor='), link)

    @given(st.integers(1, MAX_LIMIT), ALL_IDS, st.booleans())
    def test_a_link_is_read_back_as_the_page_behind_the_last(
            self, limit: int, last: str, with_count: bool) -> None:
        link = Page(limit, None, with_count).link_to_next('/addresses', last)
        self.assertRegex(link, r'^</addresses\?limit=[0-9]+&cursor=[A-Za-z0-9_-]+>; rel="next"$')
        arguments = parse_qs(urlsplit(link[1:link.index('>')]).query, strict_parsing=True)
        self.assertEqual(
            Page.of({name: [value.encode() for value in values]
                     for name, values in arguments.items()}), Page(limit, last, False))


class CursorTests(unittest.TestCase):
    def assert_refused(self, cursor: str) -> None:
        with self.assertRaises(HTTPError) as raised:
            read_cursor(cursor)
        self.assertEqual(raised.exception.status_code, 400)

    @settings(max_examples=300)
    @given(ALL_IDS)
    def test_a_cursor_is_read_back_as_the_id_it_was_made_of(self, nickname: str) -> None:
        cursor = make_cursor(nickname)
        self.assertEqual(read_cursor(cursor), nickname)
        self.assertLessEqual(set(cursor), set(URL_ALPHABET))

    def test_every_length_is_read_back(self) -> None:
        for length in range(1, 65):
            nickname = 'x' * length
            self.assertEqual(read_cursor(make_cursor(nickname)), nickname)

    def test_a_cursor_stays_the_same_from_one_process_and_release_to_the_next(self) -> None:
        self.assertEqual(make_cursor('a-b'), 'hMFF4DwZYS1i')
        self.assertEqual(read_cursor('hMFF4DwZYS1i'), 'a-b')

    def test_what_is_no_cursor_is_refused(self) -> None:
        for cursor in REFUSED_CURSORS:
            with self.subTest(cursor):
                self.assert_refused(cursor)

    def test_a_cursor_of_another_making_is_refused(self) -> None:
        for nickname in ('a', 'a-b', new_nickname(), 'x' * 64):
            with self.subTest(nickname):
                self.assert_refused(forged(nickname))
                self.assert_refused(base64.urlsafe_b64encode(nickname.encode()).decode())
                self.assert_refused(nickname)

    def test_a_cursor_of_what_can_be_no_id_is_refused_also_with_our_check(self) -> None:
        for nickname in ('', '..', '../a', 'a.json', 'a b', 'a\0', 'é', 'x' * 65, 'a\n', '*'):
            with self.subTest(nickname):
                self.assert_refused(make_cursor(nickname))

    def test_each_flipped_bit_is_found(self) -> None:
        for nickname in ('a', 'ab', 'abc', new_nickname()):
            data = bytearray(base64.urlsafe_b64decode(
                make_cursor(nickname) + '=' * (-len(make_cursor(nickname)) % 4)))
            for bit in range(8 * len(data)):
                flipped = bytearray(data)
                flipped[bit // 8] ^= 1 << bit % 8
                self.assert_refused(base64.urlsafe_b64encode(flipped).rstrip(b'=').decode())

    def test_each_other_character_in_each_place_is_found(self) -> None:
        # The last one holds spare bits, which a lenient decoder would not look at.
        for nickname in ('a', 'ab', 'abc', 'a-b-c'):
            cursor = make_cursor(nickname)
            for place, right in enumerate(cursor):
                for wrong in set(map(chr, range(256))) - {right}:
                    self.assert_refused(cursor[:place] + wrong + cursor[place + 1:])

    def test_one_character_more_or_less_is_found(self) -> None:
        for nickname in ('a', 'ab', 'abc', new_nickname()):
            cursor = make_cursor(nickname)
            for place in range(len(cursor) + 1):
                for more in (*URL_ALPHABET, *'=+/ \n\t\0.%\xe9\u0661'):
                    self.assert_refused(cursor[:place] + more + cursor[place:])
            for place in range(len(cursor)):
                self.assert_refused(cursor[:place])
                self.assert_refused(cursor[:place] + cursor[place + 1:])

    @given(ALL_IDS, st.sampled_from((
        str.upper, str.lower, str.swapcase, lambda cursor: f' {cursor}',
        lambda cursor: f'{cursor}\n', lambda cursor: f'{cursor}=',
        lambda cursor: f'{cursor}==', lambda cursor: cursor + '=' * (-len(cursor) % 4 or 4),
        lambda cursor: '\n'.join(cursor), lambda cursor: f'"{cursor}"', lambda cursor: cursor[::-1],
        lambda cursor: cursor * 2, lambda cursor: f'{cursor}AAAA',
        lambda cursor: cursor.replace('-', '+').replace('_', '/'),
        lambda cursor: ''.join(chr(ord(char) + 0xfee0) for char in cursor))))
    def test_no_other_writing_of_a_cursor_is_accepted(self, nickname: str, change: object) -> None:
        assert callable(change)
        cursor = make_cursor(nickname)
        changed = change(cursor)
        if changed == cursor:
            self.assertEqual(read_cursor(changed), nickname)
        else:
            self.assert_refused(changed)

    @given(ALL_IDS, ALL_IDS)
    def test_a_check_is_good_for_its_own_id_only(self, first: str, second: str) -> None:
        check = base64.urlsafe_b64decode(make_cursor(first)[:CHECK_SIZE // 3 * 4])
        if first == second:
            self.assertEqual(forged(second, check), make_cursor(second))
        else:
            self.assert_refused(forged(second, check))

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.text(), st.text(st.sampled_from(URL_ALPHABET), max_size=96)))
    def test_no_text_that_was_not_made_is_accepted(self, text: str) -> None:
        self.assert_refused(text)


if __name__ == '__main__':
    unittest.main()
