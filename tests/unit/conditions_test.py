"""Entity tags in conditions: what is read, what is refused, and what they match."""

from __future__ import annotations

import contextlib
import sys
import time
import unittest
from pathlib import Path
from typing import cast

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import given, settings, strategies as st
from tornado import httputil
from tornado.web import HTTPError

from addrservice.database.records import new_version
from addrservice.tornado.conditions import (
    ANY, GZIP_SUFFIX, Conditions, TaggingGZip, Tags, compression, etag_of, read_tags)
from addrservice.tornado.messages import Headers

VERSION, OTHER = '0123456789abcdef', 'fedcba9876543210'
TAG, STALE = f'"{VERSION}"', f'"{OTHER}"'
LARGEST = 16 * 1024
"""Bytes of a request's whole header by default; no value is longer."""

ONLY_WEAK = Tags(frozenset(), frozenset({VERSION}))

READ: dict[str, Tags] = {
    '*': ANY, ' *': ANY, '*\t': ANY, '\t * \t': ANY,
    '"a"': Tags(frozenset({'a'})),
    '  "a"\t': Tags(frozenset({'a'})),
    '"a","b"': Tags(frozenset({'a', 'b'})),
    '"a" ,\t"b"': Tags(frozenset({'a', 'b'})),
    '"a", "a"': Tags(frozenset({'a'})),
    '"a,b", "c"': Tags(frozenset({'a,b', 'c'})),
    '",", ","': Tags(frozenset({','})),
    '"a", W/"b", "c"': Tags(frozenset({'a', 'c'}), frozenset({'b'})),
    'W/"a", "a"': Tags(frozenset({'a'}), frozenset({'a'})),
    'W/""': Tags(frozenset(), frozenset({''})),
    '""': Tags(frozenset({''})),
    '"*"': Tags(frozenset({'*'})),
    '"W/"': Tags(frozenset({'W/'})),
    'W/"W/"': Tags(frozenset(), frozenset({'W/'})),
    ',"a"': Tags(frozenset({'a'})),
    '"a",': Tags(frozenset({'a'})),
    ' , ,,\t"a" ,, , "b",\t,': Tags(frozenset({'a', 'b'})),
    '"\\"': Tags(frozenset({'\\'})),
    '"a\\", "b"': Tags(frozenset({'a\\', 'b'})),
    '"!#~"': Tags(frozenset({'!#~'})),
    '"\x80\xe9\xff"': Tags(frozenset({'\x80\xe9\xff'})),
    '"a-gzip"': Tags(frozenset({'a'})),
    'W/"a-gzip"': Tags(frozenset(), frozenset({'a'})),
    '"a-gzip-gzip"': Tags(frozenset({'a-gzip'})),
    '"a-GZIP", "-gzip-a"': Tags(frozenset({'a-GZIP', '-gzip-a'})),
    '"-gzip"': Tags(frozenset({''})),
}
"""The value of a header -> what it lists."""

REFUSED = [
    '', ' ', '\t', ',', ', ,', 'a', 'a, b', VERSION, '"', '"a', 'a"', '"a""b"', '"a" "b"', '"a"b',
    '"a";"b"', '"a"x', 'x"a"', '"a", b', '"a", "b', '"a", "', '"a"", "b"', "'a'", '“a”',
    '**', '*,*', '* , *', '*, "a"', '"a", *', '*"a"', '"a"*', '*,', ',*', 'W/*', '(*)',
    'w/"a"', 'W"a"', 'W/ "a"', 'W / "a"', '/"a"', 'W/a', 'W/', 'W/W/"a"', 'W//"a"', 'W/"a', 'W/a"',
    'x W/"a"', 'XW/"a"', '"a b"', '" a"', '"a "', '" "', '"a\tb"', '"a\x7f"', '"a\\"b"',
    '\xa0"a"', '"a"\xa0', '\x80', '"\xe9', '"a"\xa0,"b"', '"a"\x85', 'null', '[]', '"a"\x0b',
    '"\u0100"', '"\u20ac"',
]
"""What is neither ``*`` nor a list of entity tags."""

SLOW = {
    'spaces': ' ' * LARGEST, 'spaces before a letter': ' ' * LARGEST + 'x',
    'commas': ',' * LARGEST, 'commas before a letter': ',' * LARGEST + 'x',
    'empty elements before a letter': ', ' * (LARGEST // 2) + 'x',
    'wide empty elements before a letter': (' ' * 63 + ',') * (LARGEST // 64) + 'x',
    'a tag, spaces and a letter': '"a"' + ' ' * LARGEST + 'x',
    'a tag, tabs and spaces and a comma and a letter': '"a"' + ' \t' * (LARGEST // 2) + ',x',
    'a tag, commas and a letter': '"a"' + ' ,' * (LARGEST // 2) + 'x',
    'a tag, commas and a quote': '"a"' + ', ' * (LARGEST // 2) + '"',
    'tags and a letter': '"a",' * (LARGEST // 4) + 'x',
    'tags and an open quote': '"a", ' * (LARGEST // 5) + '"a',
    'tags without commas': '"a"' * (LARGEST // 3),
    'tags with spaces only': '"a" ' * (LARGEST // 4),
    'tags far apart, the last one open': ('"a"' + ' ' * 60 + ',') * (LARGEST // 64) + '"',
    'tags with many commas between, the last one open': ('"a"' + ',' * 61) * (LARGEST // 64) + '"',
    'empty tags': '""' * (LARGEST // 2), 'quotes': '"' * (LARGEST + 1),
    'an open quote': '"' + 'a' * LARGEST, 'an open quote and commas': '"' + ',' * LARGEST,
    'open weak tags': 'W/"' * (LARGEST // 3), 'weak marks': 'W/' * (LARGEST // 2),
    'weak tags and a weak mark': 'W/"a",' * (LARGEST // 6) + 'W/',
    'asterisks': '*' * LARGEST, 'an asterisk after spaces': ' ' * LARGEST + '*x',
    'letters beyond ASCII': '\xff' * LARGEST,
}
"""What nobody sends but to keep a regular expression busy; all of it is refused."""

LONG = {
    'short tags': ('"a",' * (LARGEST // 4), {'a'}),
    'one tag': (f'"{"a" * LARGEST}"', {'a' * LARGEST}),
    'one tag of commas': (f'"{"," * LARGEST}"', {',' * LARGEST}),
    'a tag behind empty elements': (', ' * (LARGEST // 2) + TAG, {VERSION}),
    'a tag before spaces': (TAG + ' ' * LARGEST, {VERSION}),
    'versions': (', '.join(f'"{number:016x}"' for number in range(LARGEST // 20)),
                 {f'{number:016x}' for number in range(LARGEST // 20)}),
}
"""What is accepted, however long."""


def headers_of(value: str | None, name: str = 'If-Match') -> Headers:
    headers = Headers()
    if value is not None:
        headers.add(name, value)
    return headers


def read(value: str | None) -> Tags | None:
    """Reads a value that Tornado's own headers might not let through: nobody relies on that."""
    headers = {} if value is None else {'If-Match': value}
    return read_tags(cast(httputil.HTTPHeaders, headers), 'If-Match')


def parse_slowly(value: str) -> Tags | None:
    """The same list, read one character after the other as section 5.6.1.2 has it; None
    for what is no list. Nothing in here can be slow, or clever."""
    strong: set[str] = set()
    weak: set[str] = set()
    elements, has_closed = _split(value)
    found = [element.strip(' \t') for element in elements]
    for element in filter(None, found):
        opaque = element.removeprefix('W/')
        if len(opaque) < 2 or opaque[0] != '"' or opaque[-1] != '"' or not all(
                char == '!' or '#' <= char <= '~' or '\x80' <= char <= '\xff'
                for char in opaque[1:-1]):
            return None
        (weak if opaque != element else strong).add(opaque[1:-1].removesuffix(GZIP_SUFFIX))
    return Tags(frozenset(strong), frozenset(weak)) if any(found) and has_closed else None


def _split(value: str) -> tuple[list[str], bool]:
    elements, is_quoted = [''], False
    for char in value:
        is_quoted ^= char == '"'
        if char == ',' and not is_quoted:
            elements.append('')
        else:
            elements[-1] += char
    return elements, not is_quoted


class ReadTagsTests(unittest.TestCase):
    def test_a_header_that_is_not_there_is_no_condition(self) -> None:
        self.assertIsNone(read(None))
        self.assertIsNone(read_tags(headers_of(TAG, 'If-Match'), 'If-None-Match'))

    def test_a_list_is_read_as_the_standard_has_it(self) -> None:
        for value, tags in READ.items():
            with self.subTest(value):
                self.assertEqual(read(value), tags)

    def test_what_is_no_list_is_refused_by_the_name_of_the_header(self) -> None:
        for value in REFUSED:
            with self.subTest(value), self.assertRaises(HTTPError) as raised:
                read(value)
            self.assertEqual(raised.exception.status_code, 400)
            self.assertRegex(raised.exception.get_message() or '', '^If-Match: ')

    def test_the_value_does_not_come_back_in_the_message(self) -> None:
        with self.assertRaises(HTTPError) as raised:
            read('secret %s %d')
        self.assertNotIn('secret', str(raised.exception))

    def test_headers_that_stand_twice_are_one_list(self) -> None:
        headers = headers_of('"a"')
        headers.add('if-match', 'W/"b", "c"')
        self.assertEqual(read_tags(headers, 'If-Match'),
                         Tags(frozenset({'a', 'c'}), frozenset({'b'})))

    def test_an_asterisk_beside_another_header_is_refused(self) -> None:
        for first, second in (('*', '"a"'), ('"a"', '*'), ('*', '*'), ('*', '')):
            with self.subTest(first, second=second):
                headers = headers_of(first)
                headers.add('If-Match', second)
                with self.assertRaises(HTTPError):
                    read_tags(headers, 'If-Match')

    def test_bytes_beyond_ascii_arrive_as_they_were_sent(self) -> None:
        data = b'If-Match: "\xc3\xa9\xff", W/"\x80"\r\n'
        headers = httputil.HTTPHeaders.parse(data.decode('latin-1'))
        self.assertEqual(read_tags(headers, 'If-Match'),
                         Tags(frozenset({'\xc3\xa9\xff'}), frozenset({'\x80'})))

    @settings(deadline=None, max_examples=500)
    @given(st.text(st.sampled_from('"""W/,,  \t\ta*\\\xe9\x80-!\x7f'), max_size=24))
    def test_what_is_read_is_what_a_slow_reader_reads(self, value: str) -> None:
        if value.strip(' \t') == '*':
            self.assertEqual(read(value), ANY)
        elif (tags := parse_slowly(value)) is not None:
            self.assertEqual(read(value), tags)
        else:
            self.assertRaises(HTTPError, read, value)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.text(
               st.characters(min_codepoint=0x21, max_codepoint=0xff,
                             exclude_characters='"\x7f'), max_size=6)), min_size=1),
           st.text(st.sampled_from(' \t,'), max_size=6))
    def test_every_list_that_can_be_made_is_read(self, tags: list[tuple[bool, str]],
                                                 padding: str) -> None:
        value = padding + f'{padding},{padding}'.join(
            f'{"W/" * is_weak}"{tag}"' for is_weak, tag in tags) + padding
        wanted = {(is_weak, tag.removesuffix(GZIP_SUFFIX)) for is_weak, tag in tags}
        self.assertEqual(read(value), Tags(frozenset(tag for is_weak, tag in wanted if not is_weak),
                                           frozenset(tag for is_weak, tag in wanted if is_weak)))


class TimeTests(unittest.TestCase):
    """16 KB in linear time are about a millisecond; in quadratic time, seconds."""

    ENOUGH = 0.05

    def test_no_value_keeps_the_reader_busy(self) -> None:
        for name, value in SLOW.items():
            with self.subTest(name):
                self.assertRaises(HTTPError, read, value)
                self.assertLess(self.seconds_to_read(value), self.ENOUGH)

    def test_sixteen_times_as_much_takes_about_sixteen_times_as_long(self) -> None:
        for name, value in SLOW.items():
            with self.subTest(name):
                self.assertLess(self.seconds_to_read(value * 16), 10 * self.ENOUGH)

    def test_a_long_list_is_read_quickly(self) -> None:
        for name, (value, tags) in LONG.items():
            with self.subTest(name):
                self.assertEqual(read(value), Tags(frozenset(tags)))
                self.assertLess(self.seconds_to_read(value), self.ENOUGH)

    def seconds_to_read(self, value: str) -> float:
        """The best of three, in time of this thread: the machine has other things to do, too."""
        seconds = []
        for _ in range(3):
            start = time.thread_time()
            with contextlib.suppress(HTTPError):
                read(value)
            seconds.append(time.thread_time() - start)
        return min(seconds)


class MatchTests(unittest.TestCase):
    def test_a_strong_comparison_matches_strong_tags_only(self) -> None:
        for value, matches in ((TAG, True), (f'{STALE}, {TAG}', True), ('*', True), (STALE, False),
                               (f'W/{TAG}', False), (f'W/{TAG}, {STALE}', False), ('""', False),
                               (f'W/{TAG}, {TAG}', True), (f'"{VERSION.upper()}"', False),
                               (f'"{VERSION}-gzip"', True), (f'W/"{VERSION}-gzip"', False),
                               (f'"{VERSION}0"', False), (f'"{VERSION[:-1]}"', False)):
            with self.subTest(value):
                tags = read(value)
                assert tags is not None
                self.assertEqual(tags.match_strongly(VERSION), matches)

    def test_a_weak_comparison_matches_weak_tags_as_well(self) -> None:
        for value, matches in ((TAG, True), (f'W/{TAG}', True), ('*', True), (STALE, False),
                               (f'W/{STALE}, W/{TAG}', True), (f'W/"{VERSION}-gzip"', True),
                               (f'W/{STALE}', False), ('W/""', False)):
            with self.subTest(value):
                tags = read(value)
                assert tags is not None
                self.assertEqual(tags.match_weakly(VERSION), matches)

    def test_nothing_but_an_asterisk_is_any(self) -> None:
        for value in READ:
            with self.subTest(value):
                self.assertEqual(read(value) == ANY, '*' == value.strip(' \t'))

    def test_a_tag_is_read_back_as_its_version(self) -> None:
        version = new_version()
        self.assertEqual(etag_of(version), f'"{version}"')
        self.assertEqual(read(etag_of(version)), Tags(frozenset({version})))


class ConditionsTests(unittest.TestCase):
    def of(self, if_match: str | None = None, if_none_match: str | None = None) -> Conditions:
        headers = headers_of(if_match)
        if if_none_match is not None:
            headers.add('If-None-Match', if_none_match)
        return Conditions.of(headers)

    def test_a_request_without_either_header_has_no_conditions(self) -> None:
        conditions = self.of()
        self.assertEqual(conditions, (None, None))
        self.assertTrue(conditions.are_met_by_any())
        self.assertFalse(conditions.ask_to_create())
        self.assertTrue(conditions.allow_read(VERSION) and conditions.allow_change(VERSION))

    def test_either_header_is_refused_where_it_is_no_list(self) -> None:
        for if_match, if_none_match, name in (('x', None, 'If-Match'), (None, 'x', 'If-None-Match'),
                                              (TAG, '', 'If-None-Match'), ('', TAG, 'If-Match')):
            with self.subTest(if_match=if_match, if_none_match=if_none_match):
                with self.assertRaises(HTTPError) as raised:
                    self.of(if_match, if_none_match)
                self.assertRegex(raised.exception.get_message() or '', f'^{name}: ')

    def test_only_an_asterisk_in_if_none_match_alone_asks_to_create(self) -> None:
        for if_match, if_none_match, creates in (
                (None, '*', True), ('*', '*', False), (TAG, '*', False), (None, TAG, False),
                ('*', None, False), (None, '"*"', False), (None, None, False)):
            with self.subTest(if_match=if_match, if_none_match=if_none_match):
                self.assertIs(self.of(if_match, if_none_match).ask_to_create(), creates)

    def test_what_any_version_meets_needs_no_look_at_the_entry(self) -> None:
        for if_match, if_none_match, is_met in (
                ('*', None, True), (TAG, None, False), (None, STALE, False), ('*', STALE, False),
                (None, '*', False), (f'W/{TAG}', None, False)):
            with self.subTest(if_match=if_match, if_none_match=if_none_match):
                self.assertIs(self.of(if_match, if_none_match).are_met_by_any(), is_met)

    def test_a_change_needs_both_conditions_and_a_read_only_the_first(self) -> None:
        for if_match, if_none_match, read_allowed, change_allowed in (
                (TAG, None, True, True), (STALE, None, False, False), ('*', None, True, True),
                (f'W/{TAG}', None, False, False), (None, TAG, True, False),
                (None, STALE, True, True), (None, f'W/{TAG}', True, False),
                (None, '*', True, False), (TAG, STALE, True, True), (TAG, TAG, True, False),
                (STALE, STALE, False, False), (STALE, TAG, False, False), ('*', '*', True, False),
                (None, f'{STALE}, "{VERSION}-gzip"', True, False)):
            with self.subTest(if_match=if_match, if_none_match=if_none_match):
                conditions = self.of(if_match, if_none_match)
                self.assertIs(conditions.allow_read(VERSION), read_allowed)
                self.assertIs(conditions.allow_change(VERSION), change_allowed)

    def test_an_empty_set_of_strong_tags_is_not_any(self) -> None:
        self.assertFalse(ONLY_WEAK.match_strongly(VERSION))
        self.assertFalse(Conditions(ONLY_WEAK, None).are_met_by_any())
        self.assertFalse(Conditions(None, ONLY_WEAK).ask_to_create())


class CompressionTests(unittest.TestCase):
    """The tag of an answer, as the transform leaves it."""

    LONG_ENOUGH = TaggingGZip.MIN_LENGTH

    def transformed(self, accepted: str | None, size: int = LONG_ENOUGH,
                    **fields: str) -> httputil.HTTPHeaders:
        request = httputil.HTTPServerRequest(
            start_line=httputil.RequestStartLine('GET', '/', 'HTTP/1.1'),
            headers=httputil.HTTPHeaders({
                'Host': 'x', **({} if accepted is None else {'Accept-Encoding': accepted})}))
        headers = httputil.HTTPHeaders({'Content-Type': 'application/json; charset=UTF-8',
                                        **fields})
        return compression(request).transform_first_chunk(200, headers, b'a' * size, True)[1]

    def test_a_compressed_answer_has_the_tag_with_the_suffix(self) -> None:
        headers = self.transformed('gzip', Etag=TAG)
        self.assertEqual((headers['Etag'], headers['Content-Encoding']),
                         (f'"{VERSION}-gzip"', 'gzip'))
        self.assertEqual(read(headers['Etag']), Tags(frozenset({VERSION})))

    def test_a_plain_answer_has_the_plain_tag(self) -> None:
        for headers in (self.transformed(None, Etag=TAG), self.transformed('', Etag=TAG),
                        self.transformed('br', Etag=TAG),
                        self.transformed('gzip', self.LONG_ENOUGH - 1, Etag=TAG)):
            self.assertEqual((headers['Etag'], headers.get('Content-Encoding')), (TAG, None))
            self.assertEqual(headers['Vary'], 'Accept-Encoding')

    def test_what_an_answer_varies_with_besides_stays(self) -> None:
        for accepted in (None, 'br', 'gzip'):
            self.assertEqual(self.transformed(accepted, Vary='Origin')['Vary'],
                             'Origin, Accept-Encoding')

    def test_a_compressed_answer_without_a_tag_gets_none(self) -> None:
        headers = self.transformed('gzip')
        self.assertNotIn('Etag', headers)
        self.assertEqual(headers['Content-Encoding'], 'gzip')


if __name__ == '__main__':
    unittest.main()
