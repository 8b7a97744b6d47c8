"""`@traced` records what it decorates while somebody collects, and otherwise only calls it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import unittest
import unittest.mock
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from addrservice.utils import tracing
from addrservice.utils.logutils import set_log_context
from addrservice.utils.flight_recorder import ids_of
from addrservice.utils.tracing import (
    MAX_DESCRIPTION, Attributes, RequestTrace, Tracing, context_of, outgoing_headers, traced)
from tests.support import clear_log_context

TRACE_ID, SPAN_ID = '0af7651916cd43dd8448eb211c80319c', 'b7ad6b7169203331'
TRACEPARENT = f'00-{TRACE_ID}-{SPAN_ID}-01'


class Recorder:
    """Collects spans in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer('test')

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Does it as the work of a request."""
        async def request() -> Any:
            span = self.tracer.start_span('request')
            request = RequestTrace(span, ('1', '2', trace.TraceFlags(1), None))
            request.start_span = self.start_span
            request.enter()
            try:
                return await work()
            finally:
                span.end()

        return asyncio.run(request())

    def start_span(self, name: str, before: context.Context, attributes: Attributes | None
                   ) -> trace.Span:
        return self.tracer.start_span(name, before, attributes=attributes)

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def parent_of(self, name: str) -> str | None:
        parent = self.spans()[name].parent
        ids = {ids_of(span).span_id: own for own, span in self.spans().items()}
        return ids[parent.span_id] if parent else None


@traced
def double(number: int) -> int:
    return 2 * number


@traced(name='doubling', attributes=lambda number: {'number': number})
async def double_later(number: int) -> int:
    await asyncio.sleep(0)
    return double(number)


@traced(attributes={'kind': 'numbers'})
async def count_to(number: int) -> AsyncGenerator[int, None]:
    for each in range(number):
        yield await double_later(each)


@traced
async def fails(error: BaseException) -> None:
    raise error


@traced
async def echo() -> AsyncGenerator[object, object]:
    received: object = 'ready'
    while True:
        try:
            received = yield received
        except ValueError as error:
            received = repr(error)


async def count_slowly(own_spans: list[str]) -> None:
    async with aclosing(count_to(3)) as numbers:
        async for _ in numbers:
            own_spans.append(trace.get_current_span().name)  # type: ignore[attr-defined]


class TracedTest(unittest.TestCase):
    def setUp(self) -> None:
        self.recorder = Recorder()

    def test_without_a_request_it_only_calls(self) -> None:
        async def work() -> list[int]:
            return [double(1), await double_later(2), *[number async for number in count_to(2)]]

        with unittest.mock.patch.object(tracing, '_Context') as entered:
            self.assertEqual(asyncio.run(work()), [2, 4, 0, 2])
        entered.assert_not_called()

    def test_in_a_request_that_nobody_collects_it_only_calls(self) -> None:
        async def work() -> int:
            Tracing().begin('request', {}, 0).enter()
            with unittest.mock.patch.object(tracing, '_Context') as entered:
                return await double_later(2) + entered.call_count

        self.assertEqual(asyncio.run(work()), 4)

    def test_a_coroutine_function_that_another_decorator_hides_is_timed_to_its_end(self) -> None:
        outer = traced(name='outer')(traced(name='inner')(double_later))
        self.recorder.run(lambda: outer(1))
        spans = self.recorder.spans()
        self.assertEqual(self.recorder.parent_of('inner'), 'outer')
        self.assertGreaterEqual(spans['outer'].end_time or 0, spans['inner'].end_time or 1)

    def test_an_error_that_cannot_say_what_it_is_goes_on_and_its_span_ends(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise KeyError

        error = Mute()
        with self.assertRaises(Mute) as raised:
            self.recorder.run(lambda: fails(error))
        self.assertIs(raised.exception, error)
        self.assertEqual(self.recorder.spans()['fails'].status.description,
                         f'{Mute.__qualname__}: <KeyError in its text>')

    def test_what_a_generator_does_when_it_is_left_is_under_its_span(self) -> None:
        @traced(name='cleaning')
        async def clean() -> None:
            pass

        @traced(name='numbers')
        async def numbers() -> AsyncGenerator[int, None]:
            try:
                yield 1
            finally:
                await clean()

        async def leave_early() -> None:
            async with aclosing(numbers()) as items:
                await anext(items)

        self.recorder.run(leave_early)
        self.assertEqual(self.recorder.parent_of('cleaning'), 'numbers')

    def test_attributes_that_cannot_be_made_break_nothing(self) -> None:
        @traced(name='ours', attributes=lambda entry: {'id': entry.nickname})
        async def ours(entry: object) -> str:
            return 'done'

        self.assertEqual(self.recorder.run(lambda: ours(None)), 'done')
        self.assertEqual(dict(self.recorder.spans()['ours'].attributes or {}),
                         {'addrservice.attributes_error': 'AttributeError'})

    def test_functions_and_coroutines_are_spans_under_their_caller(self) -> None:
        self.assertEqual(self.recorder.run(lambda: double_later(3)), 6)
        self.assertEqual(self.recorder.parent_of('double'), 'doubling')
        self.assertEqual(self.recorder.parent_of('doubling'), 'request')
        self.assertEqual(dict(self.recorder.spans()['doubling'].attributes or {}), {'number': 3})

    def test_a_call_after_another_is_beside_it_also_if_that_has_failed(self) -> None:
        @traced(name='broken')
        def break_down() -> None:
            raise ValueError

        async def one_after_another() -> None:
            for call in (lambda: fails(ValueError()), lambda: double_later(1)):
                with contextlib.suppress(ValueError):
                    await call()
            with contextlib.suppress(ValueError):
                break_down()
            double(1)

        self.recorder.run(one_after_another)
        spans = self.recorder.exporter.get_finished_spans()
        request = ids_of(self.recorder.spans()['request']).span_id
        self.assertEqual([span.name for span in spans
                          if span.parent and span.parent.span_id == request],
                         ['fails', 'doubling', 'broken', 'double'])

    def test_a_generator_is_one_span_from_its_first_item_to_its_last(self) -> None:
        own_spans: list[str] = []
        self.recorder.run(lambda: count_slowly(own_spans))
        self.assertEqual(own_spans, ['request'] * 3, 'the caller works under its own span')
        self.assertEqual(self.recorder.parent_of('count_to'), 'request')
        self.assertEqual(self.recorder.parent_of('doubling'), 'count_to')
        names = [span.name for span in self.recorder.exporter.get_finished_spans()]
        self.assertEqual(names.count('count_to'), 1)

    def test_a_generator_that_is_left_early_has_not_failed(self) -> None:
        async def leave_early() -> None:
            async with aclosing(count_to(3)) as numbers:
                async for _ in numbers:
                    break

        self.recorder.run(leave_early)
        self.assertTrue(self.recorder.spans()['count_to'].status.is_unset)

    def test_what_is_sent_and_thrown_into_a_generator_arrives(self) -> None:
        async def talk() -> list[object]:
            async with aclosing(echo()) as items:
                return [await anext(items), await items.asend('x'),
                        await items.athrow(ValueError('y'))]

        self.assertEqual(self.recorder.run(talk), ['ready', 'x', "ValueError('y')"])

    def test_an_error_is_noted_and_goes_on(self) -> None:
        error = ValueError('no' + 1000 * '!')
        with self.assertRaises(ValueError) as raised:
            self.recorder.run(lambda: fails(error))
        self.assertIs(raised.exception, error)
        span = self.recorder.spans()['fails']
        self.assertEqual(dict(span.attributes or {}), {'error.type': 'ValueError'})
        self.assertEqual(len(span.status.description or ''), MAX_DESCRIPTION)
        self.assertTrue((span.status.description or '').startswith('ValueError: no!!'))

    def test_a_cancelled_call_has_an_end(self) -> None:
        async def cancel() -> None:
            with self.assertRaises(asyncio.CancelledError):
                await fails(asyncio.CancelledError())

        self.recorder.run(cancel)
        self.assertEqual(self.recorder.spans()['fails'].status.description, 'CancelledError: ')

    def test_requests_side_by_side_do_not_see_each_other(self) -> None:
        async def both() -> None:
            await asyncio.gather(double_later(1), double_later(2))

        self.recorder.run(both)
        spans = self.recorder.exporter.get_finished_spans()
        parents = [span.parent.span_id for span in spans if span.name == 'double' and span.parent]
        self.assertEqual(len(set(parents)), 2)

    def test_it_keeps_name_and_promise_of_what_it_decorates(self) -> None:
        self.assertEqual(double_later.__name__, 'double_later')
        with self.assertRaisesRegex(TypeError, 'generators cannot be traced'):
            traced(lambda: (yield))


class IdsTest(unittest.TestCase):
    def test_the_trace_of_the_client_goes_on(self) -> None:
        request = Tracing().begin('request', {'traceparent': TRACEPARENT}, 0)
        self.assertEqual(request.trace_id, TRACE_ID)
        self.assertNotEqual(request.span_id, SPAN_ID)

    def test_who_is_called_from_here_is_told_to_collect_as_the_client_or_the_ratio_says(
            self) -> None:
        for ratio, headers, is_sampled in (
                (1, {}, True), (0, {}, False), (0, {'traceparent': TRACEPARENT}, True),
                (1, {'traceparent': f'{TRACEPARENT[:-1]}0'}, False)):
            with self.subTest(ratio=ratio, headers=headers):
                request = Tracing(ratio).identify(headers)
                self.assertEqual(request.span.get_span_context().trace_flags.sampled, is_sampled)

    def test_without_one_or_with_a_strange_one_a_new_trace_begins(self) -> None:
        for header in ('', 'x', TRACEPARENT[:-1], TRACEPARENT.upper(), f'ff{TRACEPARENT[2:]}',
                       f'{TRACEPARENT}-more', f'00-{"0" * 32}-{SPAN_ID}-01',
                       f'00-{TRACE_ID}-{"0" * 16}-01', f'{TRACEPARENT},{TRACEPARENT}',
                       f'00-{TRACE_ID}-{SPAN_ID}-01-{"a" * 9999}', '٠' * 55):
            with self.subTest(header=header[:80]), self.assertNoLogs(level='DEBUG'):
                request = Tracing().identify({'traceparent': header})
                self.assertRegex(request.trace_id, '^[0-9a-f]{32}$')
                self.assertRegex(request.span_id, '^[0-9a-f]{16}$')
                self.assertNotEqual(request.trace_id, TRACE_ID)

    def test_a_later_version_of_the_header_is_read_as_far_as_it_is_known(self) -> None:
        request = Tracing().identify({'traceparent': f'01{TRACEPARENT[2:]}-more'})
        self.assertEqual(request.trace_id, TRACE_ID)

    def test_a_strange_tracestate_is_left_out_and_costs_nobody_a_line(self) -> None:
        for state, is_kept in (('a=1', True), ('a=1,b=2', True), ('a=1, b@c=2', True), ('a', False),
                               ('a=1,,=', False), ('A=é', False), (f'a={"x" * 600}', False),
                               (','.join(f'a{number}=1' for number in range(32)), True),
                               (','.join(f'a{number}=1' for number in range(33)), False)):
            with self.subTest(state=state[:20]), self.assertNoLogs(level='DEBUG'):
                context = context_of({'traceparent': TRACEPARENT, 'tracestate': state})
                kept = trace.get_current_span(context).get_span_context().trace_state
                self.assertEqual(bool(kept), is_kept)


class OutgoingTest(unittest.TestCase):
    def test_outside_a_request_there_is_nothing_to_send(self) -> None:
        self.assertEqual(outgoing_headers(), {})

    def test_a_call_to_another_service_carries_the_ids_of_the_request(self) -> None:
        self.addCleanup(clear_log_context)

        async def call() -> tuple[RequestTrace, dict[str, str]]:
            set_log_context(req_id='abc')
            request = Tracing().identify({'traceparent': TRACEPARENT, 'tracestate': 'a=1'})
            request.enter()
            return request, outgoing_headers()

        request, headers = asyncio.run(call())
        self.assertEqual(headers, {
            'X-Request-ID': 'abc', 'traceparent': f'00-{TRACE_ID}-{request.span_id}-01',
            'tracestate': 'a=1'})

    def test_what_others_have_put_in_the_context_stays_there(self) -> None:
        def enter() -> object:
            context.attach(context.set_value('colour', 'red'))
            Tracing().identify({}).enter()
            return context.get_value('colour')

        self.assertEqual(contextvars.copy_context().run(enter), 'red')

    def test_under_a_span_it_names_that_span(self) -> None:
        recorder = Recorder()

        @traced(name='calling')
        async def call() -> dict[str, str]:
            return outgoing_headers()

        parent_id = recorder.run(call)['traceparent'].split('-')[2]
        own = ids_of(recorder.spans()['calling'])
        self.assertEqual(parent_id, trace.format_span_id(own.span_id))


if __name__ == '__main__':
    unittest.main()
