"""The admin port's page, in a real browser, before a real server."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unittest
import urllib.parse
from pathlib import Path
from typing import ClassVar

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

import data
from tests.support import ServerProcess

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
OPTIONS = ('--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync')
ENTRY = json.dumps(next(iter(data.address_data_suite().values())))
HOSTILE = '<img src=x onerror="document.title=1">'
PATIENCE = 15_000.0
"""Milliseconds that the page may take to show what has happened."""


def find_browser() -> str:
    """The browser to use; where there must be one, its absence is a failure."""
    found = os.environ.get('ADDRSERVICE_CHROMIUM') or next(
        filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        if os.environ.get('ADDRSERVICE_REQUIRE_BROWSER'):
            raise AssertionError(f'none of {", ".join(BROWSERS)} is installed')
        raise unittest.SkipTest(f'needs a browser: none of {", ".join(BROWSERS)} is installed')
    return found


def make_server() -> ServerProcess:
    return ServerProcess({'admin': {'port': 0}, 'tracing': {'collectors': {'ring': None}}})


class AdminPageTest(unittest.TestCase):
    playwright: ClassVar[Playwright]
    browser: ClassVar[Browser]
    server: ClassVar[ServerProcess]

    @classmethod
    def setUpClass(cls) -> None:
        path = find_browser()
        cls.playwright = cls.enterClassContext(sync_playwright())
        cls.browser = cls.playwright.chromium.launch(executable_path=path, args=OPTIONS)
        cls.addClassCleanup(cls.browser.close)
        cls.server = cls.enterClassContext(make_server())

    def setUp(self) -> None:
        self.complaints: list[str] = []
        self.page = self.open_page(self.server)
        self.addCleanup(self.page.close)

    def open_page(self, server: ServerProcess) -> Page:
        page = self.browser.new_page()
        page.on('console', lambda message: self.complaints.append(message.text)
                if message.type == 'error' else None)
        page.on('pageerror', lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(PATIENCE)
        port = server.lines('STARTING')[-1]['admin_port']
        page.goto(f'http://127.0.0.1:{port}/')
        expect(page.locator('#state')).to_have_text('serving, ready', timeout=PATIENCE)
        return page

    def tearDown(self) -> None:
        self.assertEqual(self.complaints, [])

    def test_state_rates_and_latencies_are_shown(self) -> None:
        for _ in range(20):
            self.server.request('POST', '/addresses', ENTRY)
        routes = self.page.locator('#routes tr', has_text='/addresses')
        expect(routes).to_contain_text('0.', timeout=PATIENCE)
        expect(self.page.locator('#now')).to_contain_text('20', timeout=PATIENCE)
        expect(self.page.locator('#store')).to_contain_text('create_address')
        expect(self.page.locator('#checks')).to_contain_text('in rotation')
        expect(self.page.locator('#about')).to_contain_text('memory')
        self.assertEqual(self.page.locator('#now polyline').count(), 2)

    def test_a_request_is_shown_with_the_waterfall_of_its_spans(self) -> None:
        self.server.request('POST', '/addresses', ENTRY, {'X-Request-ID': 'mine'})
        self.page.locator('#last a', has_text='mine').click()
        found = self.page.locator('#request')
        expect(found.locator('.line')).to_contain_text('req_id="mine"')
        for name in ('POST /addresses', 'AddressBookService.create_address', 'validate',
                     'AddressBookDB.create_address'):
            expect(found.locator('.span', has=self.page.get_by_text(name, exact=True))
                   ).to_be_visible()
        boxes = [bar.bounding_box() for bar in found.locator('.bar').all()]
        widths = [box['width'] for box in boxes if box]
        self.assertEqual(len(widths), 4)
        self.assertEqual(max(widths), widths[0], 'the request itself is the longest')
        found.get_by_text('close').click()
        expect(found).to_be_hidden()

    def test_what_a_client_sends_is_text_and_nothing_else(self) -> None:
        self.server.request('GET', f'/{urllib.parse.quote(HOSTILE)}?{urllib.parse.quote(HOSTILE)}',
                            headers={'X-Request-ID': 'hostile'})
        self.page.locator('#last a', has_text='hostile').click()
        expect(self.page.locator('#request .line')).to_contain_text('%3Cimg')
        self.assertEqual(self.page.locator('img').count(), 0)

    def test_the_instance_is_taken_out_of_rotation_and_back(self) -> None:
        self.page.on('dialog', lambda dialog: dialog.accept())
        self.page.get_by_role('button', name='Drain', exact=True).click()
        expect(self.page.locator('#state')).to_have_text('draining, not ready', timeout=PATIENCE)
        self.assertEqual(self.server.request('GET', '/readiness').status, 503)
        self.page.get_by_role('button', name='Undrain').click()
        expect(self.page.locator('#state')).to_have_text('serving, ready', timeout=PATIENCE)
        self.complaints.clear()  # a browser complains of every 503

    def test_the_level_of_a_logger_is_chosen(self) -> None:
        choice = self.page.locator('[data-logger="addrservice"]')
        choice.select_option('ERROR')
        self.server.wait_for(lambda: self.server.lines('LEVEL CHANGED'))
        self.server.request('GET', '/addresses', headers={'X-Request-ID': 'unheard'})
        self.assertNotIn('unheard', str(self.server.lines('RESPONSE')))
        choice.select_option('')

    def test_it_notices_that_the_server_is_gone(self) -> None:
        server = self.enterContext(make_server())
        page = self.open_page(server)
        self.assertEqual(server.stop(), 0)
        expect(page.locator('#state')).to_contain_text('not reachable since', timeout=PATIENCE)
        self.complaints.clear()  # of connections that are refused


if __name__ == '__main__':
    unittest.main()
