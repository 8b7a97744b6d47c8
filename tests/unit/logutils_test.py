"""A log line is one line that reads back to what went in, and a context never crosses tasks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import math
import sys
import threading
import time
import unittest
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import example, given, settings, strategies as st

from addrservice.utils import logutils
from addrservice.utils.log_records import SRCFILE, look_up_only_what_is_asked_for
from addrservice.utils.logutils import (
    MAX_VALUE_LENGTH, LogfmtFormatter, TurnStreamHandler, get_log_context, log,
    log_line, log_text, log_texts, logfmt, one_line_trace, set_log_context)
from tests.support import clear_log_context, parse_logfmt, recording_logger

property_test = settings(derandomize=True, deadline=None, database=None, max_examples=300)

LINE_BREAKS = '\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029'
FORGERY = '" status=200 message="RESPONSE\n\r\u2028\\"\x1b[31m\x00'
KEYS = st.from_regex(r'[A-Za-z_][A-Za-z0-9_.-]*', fullmatch=True)
TEXTS = st.text() | st.text(st.sampled_from(LINE_BREAKS + '"\\= \x00\x1b\ufeffé€😀'))
VALUES = TEXTS | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()


class LogfmtTest(unittest.TestCase):
    def assert_one_line(self, line: str) -> None:
        self.assertTrue(line.isprintable(), ascii(line))
        self.assertLessEqual(len(line.splitlines()), 1)

    @property_test
    @example({'a': math.inf, 'b': -math.inf})
    @example({'a': LINE_BREAKS, 'b': FORGERY, 'c': '', 'd': '\\', 'e': '\ud800'})
    @given(st.dictionaries(KEYS, VALUES, max_size=5))
    def test_any_fields_are_one_line_that_reads_back_to_what_went_in(
            self, fields: dict[str, Any]) -> None:
        line = logfmt(fields)
        self.assert_one_line(line)
        expected = {key: value for key, value in fields.items() if value is not None}
        self.assertEqual(list(parse_logfmt(line).items()), list(expected.items()))

    @property_test
    @example('1st')
    @example('-')
    @example('a b')
    @example('a="b" c')
    @example('')
    @example('é\n')
    @given(st.text())
    def test_any_name_of_a_field_still_makes_one_pair(self, name: str) -> None:
        line = logfmt({name: 'x'})
        self.assert_one_line(line)
        self.assertEqual(list(parse_logfmt(line).values()), ['x'])

    def test_booleans_and_numbers_keep_their_types(self) -> None:
        self.assertEqual(logfmt({'a': True, 'b': False, 'c': 1, 'd': 1.5, 'e': '1'}),
                         'a=true b=false c=1 d=1.5 e="1"')

    def test_a_number_that_is_none_still_reads_back(self) -> None:
        self.assertTrue(math.isnan(parse_logfmt(logfmt({'a': math.nan}))['a']))

    def test_a_number_of_an_enumeration_is_its_number(self) -> None:
        self.assertEqual(logfmt({'status': HTTPStatus.OK}), 'status=200')

    def test_any_other_object_is_its_text(self) -> None:
        self.assertEqual(parse_logfmt(logfmt({'a': Path('x y'), 'b': ['"']})),
                         {'a': 'x y', 'b': "['\"']"})

    def test_fields_stand_in_the_order_given_and_none_is_left_out(self) -> None:
        self.assertEqual(logfmt({'z': 'x y', 'a': None, 'b': 2}), 'z="x y" b=2')

    def test_no_fields_are_no_text(self) -> None:
        self.assertEqual(logfmt({}), '')

    def test_a_value_of_the_greatest_length_is_kept_whole(self) -> None:
        self.assertEqual(parse_logfmt(logfmt({'a': 'x' * MAX_VALUE_LENGTH})),
                         {'a': 'x' * MAX_VALUE_LENGTH})

    def test_a_longer_value_keeps_its_ends_and_says_how_much_is_left_out(self) -> None:
        half = MAX_VALUE_LENGTH // 2
        value = parse_logfmt(logfmt({'a': 'x' * half + 'gone' + 'y' * half}))['a']
        self.assertEqual(value, 'x' * half + '…4 characters…' + 'y' * half)

    def test_no_value_makes_a_line_much_longer_than_the_cap(self) -> None:
        for text in ('x', '\n', '\U000e0001'):
            with self.subTest(text=ascii(text)):
                escaped = len(json.dumps(text))
                line = logfmt({'a': text * 1_000_000})
                self.assert_one_line(line)
                self.assertLess(len(line), MAX_VALUE_LENGTH * escaped + 100)


class ContextTest(unittest.TestCase):
    def setUp(self) -> None:
        clear_log_context()
        self.addCleanup(clear_log_context)

    def test_fields_add_up(self) -> None:
        set_log_context(a=1)
        set_log_context(b=2, a=3)
        self.assertEqual(dict(get_log_context()), {'a': 3, 'b': 2})

    def test_the_context_cannot_be_changed_in_place(self) -> None:
        for context in (get_log_context(), self.context_with(a=1)):
            with self.assertRaises(TypeError):
                context['b'] = 2  # type: ignore[index]  # the mistake under test

    def context_with(self, **fields: object) -> Mapping[str, object]:
        set_log_context(**fields)
        return get_log_context()

    def test_a_child_task_sees_its_parents_fields_and_keeps_its_own_to_itself(self) -> None:
        async def child(name: str) -> dict[str, object]:
            set_log_context(child=name)
            await asyncio.sleep(0)
            return dict(get_log_context())

        async def parent() -> list[dict[str, object]]:
            set_log_context(req_id='1')
            seen = await asyncio.gather(child('a'), child('b'))
            return [*seen, dict(get_log_context())]

        self.assertEqual(asyncio.run(parent()), [
            {'req_id': '1', 'child': 'a'}, {'req_id': '1', 'child': 'b'}, {'req_id': '1'}])
        self.assertEqual(dict(get_log_context()), {})

    def test_what_the_parent_adds_later_does_not_reach_a_running_child(self) -> None:
        async def parent() -> dict[str, object]:
            set_log_context(req_id='1')
            may_look = asyncio.Event()

            async def child() -> dict[str, object]:
                await may_look.wait()
                return dict(get_log_context())

            task = asyncio.create_task(child())
            await asyncio.sleep(0)
            set_log_context(late=True)
            may_look.set()
            return await task

        self.assertEqual(asyncio.run(parent()), {'req_id': '1'})

    def test_a_thread_of_a_task_sees_the_tasks_fields(self) -> None:
        async def parent() -> dict[str, object]:
            set_log_context(req_id='1')
            return dict(await asyncio.to_thread(get_log_context))

        self.assertEqual(asyncio.run(parent()), {'req_id': '1'})


class LogTest(unittest.TestCase):
    def setUp(self) -> None:
        clear_log_context()
        self.addCleanup(clear_log_context)
        self.logger, self.records = recording_logger()

    def line(self) -> str:
        return self.records[-1].getMessage()

    def test_a_line_has_the_requests_fields_first_and_its_own_win(self) -> None:
        set_log_context(req_id='1', message='OLD')
        log(self.logger, logging.INFO, message='100% "new"', a=1)
        self.assertEqual(self.line(), r'req_id="1" message="100% \"new\"" a=1')

    def test_a_line_of_its_own_fields_alone_has_no_context(self) -> None:
        set_log_context(req_id='1')
        log_line(self.logger, logging.INFO, {'message': 'x'})
        self.assertEqual(self.line(), 'message="x"')

    def test_a_line_names_the_file_and_the_line_of_who_logged_it(self) -> None:
        writers: tuple[Callable[[], None], ...] = (
            lambda: log(self.logger, logging.INFO, message='x'),
            lambda: log_line(self.logger, logging.INFO, {'message': 'x'}))
        for write in writers:
            write()
            record = self.records[-1]
            self.assertEqual((record.filename, record.lineno, record.funcName),
                             (Path(__file__).name, write.__code__.co_firstlineno, '<lambda>'))

    def test_a_level_that_nobody_hears_costs_no_formatting(self) -> None:
        class Loud:
            def __str__(self) -> str:
                raise AssertionError('formatted')
        self.logger.setLevel(logging.WARNING)
        log(self.logger, logging.INFO, value=Loud())
        self.assertEqual(self.records, [])

    def test_a_trace_becomes_one_line(self) -> None:
        try:
            raise ValueError('two\nlines')
        except ValueError as error:
            trace = one_line_trace(error)
        line = logfmt({'trace': trace})
        self.assertTrue(line.isprintable())
        self.assertEqual(parse_logfmt(line), {'trace': trace})
        self.assertTrue(trace.startswith('Traceback'))
        self.assertTrue(trace.endswith('ValueError: two\nlines'))


class FormatterTest(unittest.TestCase):
    FORMAT = 'logger="%(name)s" level="%(levelname)s" %(message)s'

    def setUp(self) -> None:
        clear_log_context()
        self.addCleanup(clear_log_context)
        self.logger = logging.Logger('lib')
        self.plain, self.quoted = self.add_handler(None), self.add_handler(self.FORMAT)

    def add_handler(self, line_format: str | None) -> io.StringIO:
        handler = logging.StreamHandler(stream := io.StringIO())
        handler.setFormatter(LogfmtFormatter(line_format) if line_format else None)
        self.logger.addHandler(handler)
        return stream

    def fields(self) -> dict[str, Any]:
        """The one line of logfmt that has been written."""
        text = self.quoted.getvalue()
        self.assertTrue(text.removesuffix('\n').isprintable(), ascii(text))
        fields = parse_logfmt(text.removesuffix('\n'))
        self.assertEqual(fields.pop('logger'), 'lib')
        del fields['level']
        return fields

    def test_a_line_of_ours_is_left_as_it_is(self) -> None:
        log(self.logger, logging.INFO, message='x "y"', n=1)
        self.assertEqual(self.quoted.getvalue(), 'logger="lib" level="INFO" '
                                                 + r'message="x \"y\"" n=1' + '\n')

    def test_the_text_of_any_other_record_becomes_its_message(self) -> None:
        self.logger.warning('%s is %d%%\n%s', 'this', 5, FORGERY)
        self.assertEqual(self.fields(), {'message': f'this is 5%\n{FORGERY}'})

    def test_the_text_of_another_record_may_hold_percent_signs(self) -> None:
        self.logger.warning('100%s %d')
        self.assertEqual(self.fields(), {'message': '100%s %d'})

    def test_another_records_traceback_becomes_its_trace(self) -> None:
        try:
            raise ValueError('bad\nthing')
        except ValueError:
            self.logger.exception('it failed')
        fields = self.fields()
        self.assertEqual(fields['message'], 'it failed')
        self.assertRegex(fields['trace'], r'(?s)\ATraceback .*ValueError: bad\nthing\Z')
        # A handler before ours had formatted the traceback, and keeps it.
        self.assertIn('\nValueError: bad\nthing\n', self.plain.getvalue())

    def test_a_handler_behind_ours_gets_the_record_unchanged(self) -> None:
        behind = self.add_handler(None)
        try:
            raise ValueError('bad')
        except ValueError:
            self.logger.error('it %s', 'failed', exc_info=True, stack_info=True)
        self.assertEqual(behind.getvalue(), self.plain.getvalue())
        self.assertIn('Stack (most recent call last)', behind.getvalue())

    def test_a_record_with_a_stack_is_one_line_too(self) -> None:
        self.logger.warning('here', stack_info=True)
        self.assertEqual(self.fields()['message'], 'here')

    def test_a_record_that_asks_for_an_exception_where_none_is_has_no_trace(self) -> None:
        self.logger.warning('fine', exc_info=True)
        self.assertEqual(self.fields(), {'message': 'fine'})

    def test_a_record_logged_in_a_request_carries_its_fields(self) -> None:
        set_log_context(req_id='1')
        self.logger.warning('slow')
        self.assertEqual(list(self.fields().items()), [('req_id', '1'), ('message', 'slow')])

    def test_a_huge_record_is_capped(self) -> None:
        self.logger.warning('x' * 10 * MAX_VALUE_LENGTH)
        self.assertLess(len(self.quoted.getvalue()), 2 * MAX_VALUE_LENGTH)


class TimeTest(unittest.TestCase):
    def test_each_line_has_its_own_time_written_as_logging_writes_it(self) -> None:
        ours, theirs = LogfmtFormatter('%(asctime)s'), logging.Formatter('%(asctime)s')
        for created in (1e9, 1e9 + 0.0015, 1e9 + 0.9996, 1e9 + 1, 1e9 - 1, 1e9 + 7200.25):
            record = logging.makeLogRecord({'created': created,
                                            'msecs': int(created % 1 * 1000) + 0.0})
            with self.subTest(created=created):
                self.assertEqual(ours.formatTime(record), theirs.formatTime(record))
                self.assertEqual(ours.formatTime(record, '%H:%M'),
                                 theirs.formatTime(record, '%H:%M'))


class Stream(io.StringIO):
    """Counts how often it is flushed; what comes then has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.error: Exception | None = None

    def flush(self) -> None:
        if self.error:
            raise self.error
        if text := self.getvalue():
            self.written.append(text)
            self.seek(0)
            self.truncate()


class TurnTest(unittest.IsolatedAsyncioTestCase):
    """Lines of one turn of the event loop are written together."""

    def setUp(self) -> None:
        self.stream = Stream()
        self.handler = TurnStreamHandler(self.stream)
        self.handler.setFormatter(LogfmtFormatter('%(message)s'))
        self.logger = logging.Logger('turns')
        self.logger.addHandler(self.handler)

    def log(self, *numbers: int) -> None:
        for number in numbers:
            log_line(self.logger, logging.INFO, {'n': number})

    async def test_at_the_end_of_a_turn_its_lines_are_written_with_one_call(self) -> None:
        self.log(1, 2)
        self.assertEqual(self.stream.written, [])
        await asyncio.sleep(0)
        self.log(3)
        await asyncio.sleep(0)
        self.assertEqual(self.stream.written, ['n=1\nn=2\n', 'n=3\n'])

    async def test_a_line_of_a_thread_is_written_at_once_with_what_waits(self) -> None:
        self.log(1)
        thread = threading.Thread(target=self.log, args=[2])
        thread.start()
        thread.join()  # the loop has had no turn
        self.assertEqual(self.stream.written, ['n=1\nn=2\n'])

    async def test_whoever_closes_it_within_a_turn_loses_nothing(self) -> None:
        self.log(1)
        self.handler.close()
        self.assertEqual(self.stream.written, ['n=1\n'])

    async def test_what_cannot_be_written_is_told_as_logging_tells_it(self) -> None:
        self.stream.error = OSError('full')
        with mock.patch.object(self.handler, 'handleError') as told:
            self.log(1)
            await asyncio.sleep(0)
        told.assert_called_once()
        self.stream.error = None
        self.log(2)
        await asyncio.sleep(0)
        self.assertEqual(self.stream.written, ['n=1\nn=2\n'])

    async def test_the_turn_is_in_no_request_s_context(self) -> None:
        found = []
        set_log_context(req_id='a')
        self.addCleanup(clear_log_context)
        with mock.patch.object(self.stream, 'flush', lambda: found.append(get_log_context())):
            self.log(1)
            await asyncio.sleep(0)
        self.assertEqual(found, [{}])


class NoLoopTest(TurnTest):
    """Where no event loop runs, or another than before, nothing waits for it."""

    async def test_a_loop_that_ended_in_its_turn_keeps_no_line_back(self) -> None:
        async def log_and_end() -> None:
            self.log(1)
            asyncio.get_running_loop().stop()

        def run() -> None:
            with contextlib.closing(asyncio.new_event_loop()) as loop:
                loop.create_task(log_and_end())
                loop.run_forever()
            self.log(2)

        await asyncio.to_thread(run)
        self.log(3)
        await asyncio.sleep(0)
        self.assertEqual(''.join(self.stream.written), 'n=1\nn=2\nn=3\n')


class Books(NamedTuple):
    """A logger under another, each with a handler that writes to a stream of its own."""

    upper: logging.Logger
    lower: logging.Logger
    handlers: tuple[TurnStreamHandler, TurnStreamHandler]
    streams: tuple[io.StringIO, io.StringIO]


class TellingTimes(LogfmtFormatter):
    """Somebody's own."""

    def format(self, record: logging.LogRecord) -> str:
        return f'{super().format(record)} own=true'


class TextsTest(unittest.TestCase):
    """Lines that are logged together are what they are one by one."""

    USUAL = 'time="%(asctime)s" logger="%(name)s" level="%(levelname)s" %(message)s'
    TEXTS = ('n=1', 'text="%s"', 'n=3')

    def setUp(self) -> None:
        self.addCleanup(setattr, logging, '_srcfile', logging._srcfile)
        self.addCleanup(logging.setLogRecordFactory, logging.getLogRecordFactory())
        look_up_only_what_is_asked_for({})
        self.enterContext(mock.patch.object(time, 'time', return_value=1_750_000_000.25))

    def make(self) -> Books:
        upper, lower = logging.Logger('upper'), logging.Logger('lower')
        lower.parent = upper
        streams = io.StringIO(), io.StringIO()
        handlers = TurnStreamHandler(streams[0]), TurnStreamHandler(streams[1])
        for logger, handler in zip((upper, lower), handlers):
            handler.setFormatter(LogfmtFormatter(self.USUAL))
            logger.addHandler(handler)
        return Books(upper, lower, handlers, streams)

    def written(self, change: Callable[[Books], object], are_together: bool) -> list[str]:
        """What both streams get."""
        books = self.make()
        change(books)
        if are_together:
            log_texts(books.lower, logging.INFO, self.TEXTS)
        else:
            for text in self.TEXTS:
                log_text(books.lower, logging.INFO, text)
        return [stream.getvalue() for stream in books.streams]

    def test_wherever_they_go_and_however_they_look(self) -> None:
        changes: dict[str, Callable[[Books], object]] = {
            'nothing': lambda books: None,
            'level': lambda books: books.handlers[0].setLevel(logging.WARNING),
            'no way up': lambda books: setattr(books.lower, 'propagate', False),
            'disabled': lambda books: setattr(books.lower, 'disabled', True),
            'filter': lambda books: books.lower.addFilter(lambda record: '%' not in record.msg),
            'filter above': lambda books: books.upper.addFilter(lambda record: False),
            'filter of a handler': lambda books: books.handlers[1].addFilter(
                lambda record: '3' not in record.msg),
            'style': lambda books: books.handlers[0].setFormatter(
                LogfmtFormatter('{levelname} {message}', style='{')),
            'date': lambda books: books.handlers[0].setFormatter(
                LogfmtFormatter(self.USUAL, datefmt='%H')),
            'no time': lambda books: books.handlers[0].setFormatter(LogfmtFormatter('%(message)s')),
            'no format': lambda books: books.handlers[0].setFormatter(LogfmtFormatter()),
            'own formatter': lambda books: books.handlers[0].setFormatter(TellingTimes(self.USUAL)),
            'usual formatter': lambda books: books.handlers[0].setFormatter(logging.Formatter()),
            'no formatter': lambda books: books.handlers[0].setFormatter(None),
            'terminator': lambda books: setattr(books.handlers[0], 'terminator', ';'),
            'caller': lambda books: setattr(logging, '_srcfile', SRCFILE)}
        seen = set()
        for name, change in changes.items():
            with self.subTest(name):
                one_by_one = self.written(change, are_together=False)
                self.assertEqual(self.written(change, are_together=True), one_by_one)
                seen.add(tuple(one_by_one))
        self.assertGreater(len(seen), 8)  # nearly all of them are seen

    def test_usually_there_is_one_record_for_all(self) -> None:
        books = self.make()
        with mock.patch.object(LogfmtFormatter, 'format') as format_one:
            log_texts(books.lower, logging.INFO, self.TEXTS)
        format_one.assert_not_called()
        self.assertEqual(books.streams[0].getvalue().count('\n'), len(self.TEXTS))

    def test_what_cannot_be_written_is_told_as_logging_tells_it(self) -> None:
        books = self.make()
        books.streams[1].close()
        with mock.patch.object(books.handlers[1], 'handleError') as told:
            log_texts(books.lower, logging.INFO, self.TEXTS)
        told.assert_called_once()
        self.assertEqual(books.streams[0].getvalue().count('\n'), len(self.TEXTS))


class ModuleTest(unittest.TestCase):
    def test_no_logger_lives_at_module_level(self) -> None:
        self.assertEqual(list(self.loggers()), [])

    def loggers(self) -> Iterator[str]:
        for name, value in vars(logutils).items():
            if isinstance(value, (logging.Logger, logging.LoggerAdapter)):
                yield name


if __name__ == '__main__':
    unittest.main()
