"""The admin port's page, in a real browser, before a real server."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar, Literal

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import (
    BrowserContext, ConsoleMessage, Locator, Page, Playwright, expect, sync_playwright)

import data
from tests.support import ServerProcess

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
OPTIONS = ('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync')
ENTRY = json.dumps(next(iter(data.address_data_suite().values())))
HOSTILE = '<img/src=x/onerror=alert(1)>'
PATIENCE = 15_000.0
"""Milliseconds that the page may take to show what has happened."""


def find_browser() -> str:
    """The browser to use: the one thing that tests need and pip does not have."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise unittest.SkipTest(f'needs a browser: none of {", ".join(BROWSERS)} is installed')
    return found


WIDTH, NARROW = 1280, 390
LONG = '/' + 'long/' * 60 + '?' + 'q=long&' * 60

QUANTILE = """
([before, now, share]) => {
  const samples = (counts) => parseMetrics(Object.entries(counts)
    .map(([le, count]) => `h_bucket{le="${le}",route="a\\\\"b,{}"} ${count}`).join('\\n'));
  return new Interval({at: 0, samples: samples(before)}, {at: 2, samples: samples(now)})
    .quantile(share, 'h', (labels) => labels.route === 'a"b,{}');
}"""
"""Has the page work one out; the label must be unescaped for it."""

CONTRASTS = """
(selector) => {
  const parse = (text) => text.match(/[0-9.]+/g).map(Number);
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (color) => [0.2126, 0.7152, 0.0722]
    .reduce((sum, weight, index) => sum + weight * linear(color[index] / 255), 0);
  const paper = (node) => {
    const color = parse(getComputedStyle(node).backgroundColor);
    return color[3] === 0 ? paper(node.parentElement) : color;
  };
  const hasText = (node) => node.checkVisibility() && !node.closest(':disabled')
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  return [...document.querySelectorAll(selector)].filter(hasText).map((node) => {
    const both = [parse(getComputedStyle(node).color), paper(node)].map(luminance);
    return [(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), node.textContent.trim()];
  });
}"""
"""The contrast of all text that is visible, as WCAG 2.2 has it (section 1.4.3)."""


def make_server(**sections: Any) -> ServerProcess:
    return ServerProcess({'admin': {'port': 0}, **sections})


class AdminPageTest(unittest.TestCase):
    playwright: ClassVar[Playwright]
    context: ClassVar[BrowserContext]
    server: ClassVar[ServerProcess]
    book: ClassVar[Path]

    @classmethod
    def setUpClass(cls) -> None:
        path = find_browser()
        cls.playwright = cls.enterClassContext(sync_playwright())
        browser = cls.playwright.chromium.launch(executable_path=path, args=OPTIONS)
        cls.addClassCleanup(browser.close)
        cls.context = browser.new_context()
        cls.book = Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / 'book.db'
        cls.server = cls.enterClassContext(make_server(
            tracing={'collectors': {'ring': None}}, **{'addr-db': {'sqlite': str(cls.book)}}))

    def setUp(self) -> None:
        self.complaints: list[str] = []

    def tearDown(self) -> None:
        self.assertEqual(self.complaints, [])

    def open_page(self, place: str = '', server: ServerProcess | None = None,
                  width: int = WIDTH, color_scheme: Literal['light', 'dark'] = 'light') -> Page:
        """A page that has been refreshed at least once."""
        page = self.context.new_page()
        self.addCleanup(page.close)
        page.set_viewport_size({'width': width, 'height': 900})
        page.emulate_media(color_scheme=color_scheme)
        page.on('console', self.note)
        page.on('pageerror', lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(PATIENCE)
        port = (server or self.server).lines('STARTING')[-1]['admin_port']
        page.goto(f'http://127.0.0.1:{port}/{place}')
        page.evaluate('refresh()')  # the first one, which is under way
        expect(page.locator('#state')).to_have_text('serving, ready', timeout=PATIENCE)
        return page

    def note(self, message: ConsoleMessage) -> None:
        if message.type == 'error':
            self.complaints.append(message.text)

    def refresh(self, page: Page) -> None:
        """Does it now, not in two seconds; the first may have begun before."""
        page.evaluate('refresh().then(refresh)')

    def fail_a_request(self, req_id: str) -> None:
        """Meets a damaged record."""
        with sqlite3.connect(self.book) as book:
            book.execute('INSERT OR REPLACE INTO addresses VALUES (?, ?, ?)',
                         ('damaged', '{}', '0' * 16))
        book.close()
        answer = self.server.request('GET', '/addresses/damaged', headers={'X-Request-ID': req_id})
        self.assertEqual(answer.status, 500)

    def test_state_rates_and_latencies_are_shown_and_kept_up_to_date(self) -> None:
        page = self.open_page()
        for _ in range(20):
            self.server.request('POST', '/addresses', ENTRY)
        route = page.locator('#routes tr', has=page.get_by_text('/addresses', exact=True))
        requests, rate, p99 = (route.locator('td').nth(index) for index in (6, 0, 3))
        expect(requests).to_have_text(re.compile('[2-9][0-9]'), timeout=PATIENCE)
        expect(page.locator('#window')).to_have_text(re.compile('in the last [0-9]+ s'))
        for cell in (rate, p99, page.locator('#now dd').first):
            self.assertGreater(float(cell.inner_text()), 0)
        stored = page.locator('#store tr', has_text='create_address')
        expect(stored.locator('td').first).to_have_text(re.compile('[1-9]'))
        expect(page.locator('#checks')).to_contain_text('in rotation ok')
        expect(page.locator('#about')).to_contain_text('sqlite')
        self.assertEqual(page.locator('#now svg path').count(), 2)

    def test_quantiles_are_those_of_what_was_added_since(self) -> None:
        before = {'0.125': 10, '0.5': 10, '+Inf': 10}
        now = {'0.125': 12, '0.5': 18, '+Inf': 20}
        page = self.open_page()
        for share, expected in ((.1, {'ms': 62.5}), (.2, {'ms': 125}), (.5, {'ms': 312.5}),
                                (.9, {'ms': 500, 'isOver': True})):
            with self.subTest(share=share):
                self.assertEqual(page.evaluate(QUANTILE, [before, now, share]), expected)
        self.assertIsNone(page.evaluate(QUANTILE, [now, now, .5]), 'there was nothing')
        set_back = {'0.125': 2, '0.5': 2, '+Inf': 2}
        self.assertEqual(page.evaluate(QUANTILE, [now, set_back, .5]), {'ms': 62.5})

    def test_figures_have_the_digits_that_matter(self) -> None:
        page = self.open_page()
        for value, text in ((None, '–'), (0, '0'), (.0031, '0.003'), (.5, '0.500'),
                            (3.14159, '3.14'), (12.34, '12.3'), (100, '100'), (1234.6, '1,235')):
            self.assertEqual(page.evaluate('figure', value), text)
        for seconds, text in ((0, '0 s'), (119, '119 s'), (120, '2 min'), (7260, '2 h 1 min'),
                              (200_000, '2 d 7 h')):
            self.assertEqual(page.evaluate('duration', seconds), text)

    def test_a_process_that_was_started_anew_is_not_compared_with_the_one_before(self) -> None:
        page = self.open_page()
        self.refresh(page)
        expect(page.locator('#window')).to_contain_text('in the last')
        page.route('**/info', lambda route: route.fulfill(json={
            **route.fetch().json(), 'started': '2999-01-01T00:00:00.000+00:00'}))
        self.refresh(page)
        expect(page.locator('#about')).to_contain_text('restarted since this page was opened')
        self.assertEqual(page.evaluate('answers.filter((each) => each.process < "2999").length'), 0)
        page.unroute_all(behavior='wait')

    def test_a_request_is_shown_with_the_waterfall_of_its_spans(self) -> None:
        page = self.open_page()
        self.server.request('POST', '/addresses', ENTRY, {'X-Request-ID': 'it.is:mine_1-2'})
        self.refresh(page)
        page.locator('#last a', has_text='it.is:mine_1-2').click()
        found = page.locator('#request')
        expect(found.locator('.line')).to_contain_text('req_id="it.is:mine_1-2"')
        for name in ('POST /addresses', 'AddressBookService.create_address', 'read_entry',
                     'AddressBookDB.create_address'):
            expect(found.locator('.span', has=page.get_by_text(name, exact=True))).to_be_visible()
        boxes = [bar.bounding_box() for bar in found.locator('.bar').all()]
        widths = [box['width'] for box in boxes if box]
        self.assertGreaterEqual(len(widths), 4)
        self.assertEqual(max(widths), widths[0], 'the request itself is the longest')
        found.get_by_text('close').click()
        expect(found).to_be_hidden()

    def test_an_error_trace_of_a_failed_request_is_shown(self) -> None:
        self.fail_a_request('broken')
        page = self.open_page()
        page.locator('#failed a', has_text='broken').first.click()
        found = page.locator('#request')
        expect(found.locator('.raised')).to_have_text(
            re.compile('^addrservice.*UnreadableRecord: '))
        expect(found.locator('.trace')).to_contain_text('Traceback (most recent call last)')
        expect(found.locator('.trace')).to_contain_text('in read_address')
        self.assertGreater(found.locator('.bar.error').count(), 1)
        expect(found).to_contain_text('addresses.nickname=damaged')

    def test_a_request_is_opened_and_closed_by_keyboard_alone(self) -> None:
        self.server.request('GET', '/addresses', headers={'X-Request-ID': 'by-keyboard'})
        page = self.open_page()
        link = page.locator('#last a', has_text='by-keyboard').first
        self.tab_to(page, link)
        page.keyboard.press('Enter')
        expect(page.locator('#request .line')).to_contain_text('by-keyboard')
        expect(page.locator('#request-title')).to_be_focused()
        summary = page.locator('#request summary').nth(1)
        self.tab_to(page, summary)
        page.keyboard.press('Enter')
        self.refresh(page)
        expect(page.locator('#request details[open] pre')).to_contain_text('began after')
        expect(summary).to_be_focused()
        page.keyboard.press('Escape')
        expect(page.locator('#request')).to_be_hidden()
        expect(link).to_be_focused()

    def tab_to(self, page: Page, target: Locator) -> None:
        for _ in range(300):
            if target.evaluate('(node) => node === document.activeElement'):
                return
            page.keyboard.press('Tab')
        raise AssertionError(f'{target} is not reached')

    def test_rows_stay_where_they_are_under_the_pointer(self) -> None:
        self.server.request('GET', '/addresses', headers={'X-Request-ID': 'here'})
        page = self.open_page()
        page.locator('#last a', has_text='here').first.hover()
        self.server.request('GET', '/addresses', headers={'X-Request-ID': 'later'})
        self.refresh(page)
        self.assertEqual(page.locator('#last a', has_text='later').count(), 0)
        expect(page.locator('#last')).to_have_class(re.compile('held'))
        page.mouse.move(0, 0)
        self.refresh(page)
        expect(page.locator('#last a', has_text='later')).to_be_visible()

    def test_an_address_of_no_request_is_told_so(self) -> None:
        page = self.open_page('#/requests/%zz')
        expect(page.locator('#request-title')).to_have_text('Request %zz')
        for place, text in (('nobody', 'No request with this id is kept'),
                            ('..', 'the answer is not JSON')):
            page.evaluate('(place) => { location.hash = `#/requests/${place}`; }', place)
            expect(page.locator('#request-found')).to_have_text(text)
        self.complaints.clear()  # a browser complains of every 404

    def test_without_a_ring_it_says_how_to_have_one(self) -> None:
        page = self.open_page(server=self.enterContext(make_server()))
        expect(page.locator('#no-ring')).to_be_visible()
        expect(page.locator('#no-ring pre')).to_have_text('tracing:\n  collectors:\n    ring:')
        expect(page.locator('#last')).to_be_hidden()
        self.refresh(page)
        expect(self.open_page().locator('#no-ring')).to_be_hidden()

    def test_what_a_client_sends_is_text_and_nothing_else(self) -> None:
        self.server.request('GET', f'/{HOSTILE}?{HOSTILE}', headers={'X-Request-ID': 'hostile'})
        page = self.open_page()
        self.refresh(page)
        page.locator('#last a', has_text='hostile').click()
        expect(page.locator('#request .line')).to_contain_text(HOSTILE)
        self.assertEqual(page.locator('img').count(), 0)

    def test_names_and_attributes_are_text_and_nothing_else(self) -> None:
        span = {'name': HOSTILE, 'span_id': '1', 'parent_id': '0', 'start_ms': 0.0,
                'duration_ms': None, 'attributes': {HOSTILE: [HOSTILE]}, 'error': HOSTILE}
        line = {'method': 'GET', 'uri': HOSTILE, 'status': 500, 'time_ms': 0.5, 'detail': HOSTILE}
        request = {'started': '2026-01-01T00:00:00.000+00:00', 'line': line, 'spans': [span],
                   'spans_dropped': 1, 'trace': HOSTILE}
        page = self.open_page()
        page.route('**/requests/evil', lambda route: route.fulfill(json={'requests': [request]}))
        page.route('**/loggers', lambda route: route.fulfill(json={
            'levels': [HOSTILE], 'loggers': {HOSTILE: {'level': HOSTILE, 'effective': HOSTILE}}}))
        page.evaluate('location.hash = "#/requests/evil"')
        self.refresh(page)
        expect(page.locator('#request .span')).to_contain_text('not ended')
        expect(page.locator('#loggers')).to_contain_text(HOSTILE)
        self.assertEqual(page.locator('img').count(), 0)

    def test_a_narrow_screen_need_not_be_scrolled_sideways(self) -> None:
        self.server.request('GET', LONG, headers={'X-Request-ID': 'x' * 64})
        self.fail_a_request('narrow')
        page = self.open_page(width=NARROW)
        expect(page.locator('#loggers select').first).to_be_visible()
        for req_id in ('', 'narrow', 'x' * 64):
            if req_id:
                page.evaluate('(id) => { location.hash = hashOf(id); }', req_id)
                expect(page.locator('#request .line').first).to_contain_text(req_id)
            width = page.evaluate('document.documentElement.scrollWidth')
            self.assertLessEqual(width, NARROW, req_id)

    def test_all_text_has_enough_contrast(self) -> None:
        self.fail_a_request('contrast')
        self.server.request('GET', '/addresses/nobody')
        for color_scheme in ('light', 'dark'):
            page = self.open_page('#/requests/contrast', color_scheme=color_scheme)
            expect(page.locator('#request .trace').first).to_be_visible()
            expect(page.locator('#last a').first).to_be_visible()
            page.locator('#request summary').first.click()
            contrasts = page.evaluate(CONTRASTS, 'body *')
            self.assertGreater(len(contrasts), 100)
            for kind in ('serving', 'draining', 'unready', 'gone'):
                page.evaluate('(kind) => setState(kind, kind)', kind)
                contrasts += page.evaluate(CONTRASTS, '#state')
            self.assertGreaterEqual(min(contrasts), [4.5], (color_scheme, min(contrasts)))

    def test_the_instance_is_taken_out_of_rotation_and_back(self) -> None:
        page = self.open_page()
        page.on('dialog', lambda dialog: dialog.accept())
        page.get_by_role('button', name='Drain', exact=True).click()
        expect(page.locator('#state')).to_have_text('draining, not ready', timeout=PATIENCE)
        self.assertEqual(self.server.request('GET', '/readiness').status, 503)
        expect(page.locator('#checks')).to_contain_text('in rotation failed')
        page.get_by_role('button', name='Undrain').click()
        expect(page.locator('#state')).to_have_text('serving, ready', timeout=PATIENCE)
        self.complaints.clear()  # a browser complains of every 503

    def test_the_level_of_a_logger_is_chosen_and_shown(self) -> None:
        page = self.open_page()
        choice = page.locator('[data-logger="addrservice"]')
        choice.select_option('ERROR')
        self.server.wait_for(lambda: self.server.lines('LEVEL CHANGED'))
        self.server.request('GET', '/addresses', headers={'X-Request-ID': 'unheard'})
        self.assertNotIn('unheard', str(self.server.lines('RESPONSE')))
        elsewhere = self.open_page().locator('[data-logger="addrservice"]')
        expect(elsewhere).to_have_value('ERROR')
        elsewhere.select_option('')
        self.server.wait_for(lambda: len(self.server.lines('LEVEL CHANGED')) > 1)
        self.refresh(page)
        expect(choice).to_have_value('')
        expect(choice.locator('option').first).to_have_text('inherit (DEBUG)')

    def test_a_level_that_is_refused_is_told_and_what_is_in_effect_is_shown(self) -> None:
        page = self.open_page()
        page.route('**/loggers/root', lambda route: route.fulfill(status=500, body='no JSON'))
        choice = page.locator('[data-logger="root"]')
        choice.focus()  # while somebody may be choosing, a refresh leaves it alone
        choice.select_option('ERROR')
        expect(page.get_by_role('alert')).to_have_text('500 Internal Server Error')
        expect(choice).to_have_value('DEBUG')
        self.complaints.clear()  # a browser complains of every 500

    def test_it_notices_that_the_server_is_gone(self) -> None:
        server = self.enterContext(make_server())
        page = self.open_page(server=server)
        self.assertEqual(server.stop(), 0)
        self.refresh(page)
        expect(page.locator('#state')).to_contain_text('not reachable since', timeout=PATIENCE)
        expect(page).to_have_title(re.compile('^not reachable'))
        expect(page.get_by_role('button', name='Drain', exact=True)).to_be_disabled()
        self.complaints.clear()  # of connections that are refused

    def test_it_notices_that_the_server_is_back(self) -> None:
        page = self.open_page()
        page.route('**/info', lambda route: route.abort())
        self.refresh(page)
        expect(page.locator('body')).to_have_class('old')
        expect(page.locator('#state')).to_contain_text('not reachable since')
        page.unroute_all(behavior='wait')
        self.refresh(page)
        expect(page.locator('#state')).to_have_text('serving, ready')
        expect(page.locator('body')).not_to_have_class('old')
        self.complaints.clear()  # of connections that are refused

    def test_one_part_that_fails_keeps_no_other_from_being_shown(self) -> None:
        page = self.open_page()
        page.route('**/metrics', lambda route: route.fulfill(status=500))
        self.server.request('GET', '/addresses', headers={'X-Request-ID': 'still-shown'})
        self.refresh(page)
        expect(page.locator('#trouble')).to_have_text('/metrics: 500 Internal Server Error')
        expect(page.locator('#last')).to_contain_text('still-shown')
        expect(page.locator('#state')).to_have_text('serving, ready')
        self.complaints.clear()  # a browser complains of every 500


if __name__ == '__main__':
    unittest.main()
