"""What no line tells is not looked up for each record."""

from __future__ import annotations

import logging
import sys
import time
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.config import load_config
from addrservice.utils.log_records import RARE_FIELDS, look_up_only_what_is_asked_for
from addrservice.utils.logutils import log_line
from tests.support import DEADLINE, ROOT, recording_logger


class LookUpTest(unittest.TestCase):
    """What no line tells is not looked up for each record."""

    def setUp(self) -> None:
        for name in ('_srcfile', 'logThreads', 'logProcesses', 'logMultiprocessing'):
            self.addCleanup(setattr, logging, name, getattr(logging, name))
        self.addCleanup(logging.setLogRecordFactory, logging.getLogRecordFactory())

    def looked_up(self, section: Mapping[str, Any]) -> str:
        """What a record has when this is configured: caller, thread, process."""
        look_up_only_what_is_asked_for(section)
        logger, records = recording_logger()
        logger.warning('x')
        record, = records
        return ''.join(letter for letter, is_there in (
            ('c', record.funcName == 'looked_up'), ('t', record.thread), ('p', record.process))
            if is_there)

    def test_a_format_gets_what_it_names(self) -> None:
        for style, text, found in (
                ('%', '%(funcName)s', 'c'), ('{', '{lineno}', 'c'), ('$', '${filename}', 'c'),
                ('%', '%(pathname)s', 'c'), ('%', '%(threadName)s', 't'),
                ('%', '%(process)d', 'p'), ('%', '%(processName)s %(module)s', 'cp'),
                ('%', '%(asctime)s %(message)s', '')):
            formatter = {'class': 'addrservice.utils.logutils.LogfmtFormatter', 'style': style,
                         'format': f'{text} and more'}
            with self.subTest(text=text):
                self.assertEqual(self.looked_up({'formatters': {'ours': formatter}}), found)

    def test_what_is_rarely_put_in_a_line_is_in_the_record_of_a_format_that_names_it(self) -> None:
        for field in (*RARE_FIELDS, 'processName', 'threadName', 'levelno', 'msecs', 'created'):
            look_up_only_what_is_asked_for({'formatters': {'ours': {'format': f'%({field})s'}}})
            logger, records = recording_logger()
            logger.warning('x')
            self.assertIn(field, vars(records[0]))

    def test_a_brief_record_has_all_that_another_has(self) -> None:
        usual = logging.LogRecord('a', logging.INFO, '', 0, 'x', (), None)
        look_up_only_what_is_asked_for({})
        logger, records = recording_logger()
        log_line(logger, logging.INFO, {'n': 1})
        logger.info('%s', 'with arguments')
        try:
            raise ValueError
        except ValueError:
            logger.exception('with an error')
        for record in records:
            for name in vars(usual):
                self.assertTrue(hasattr(record, name), name)
        ours, with_arguments, with_error = records
        self.assertEqual((ours.getMessage(), ours.levelname, ours.name, ours.args),
                         ('n=1', 'INFO', 'recording', ()))
        self.assertTrue(0 <= time.time() - ours.created < DEADLINE)
        self.assertTrue(0 <= ours.msecs < 1000)
        self.assertEqual(with_arguments.getMessage(), 'with arguments')
        self.assertIsInstance((with_error.exc_info or (None, None))[1], ValueError)

    def test_the_name_of_a_log_file_is_no_format(self) -> None:
        section = {
            'formatters': {'ours': {'()': 'addrservice.utils.logutils.LogfmtFormatter',
                                    'fmt': '%(asctime)s %(message)s'}},
            'handlers': {'file': {'class': 'logging.FileHandler', 'filename': 'module.log'}}}
        self.assertEqual(self.looked_up(section), '')
        self.assertEqual(self.looked_up({'version': 1}), '')

    def test_of_our_configurations_only_that_for_work_on_this_machine_tells_callers(self) -> None:
        found = {path.name: self.looked_up(load_config(str(path))['logging'])
                 for path in (ROOT / 'configs').glob('*.yaml')}
        self.assertEqual({name for name in found if found[name]}, {'addressbook-local.yaml'})

    def test_a_class_of_somebody_s_own_may_want_to_know_anything(self) -> None:
        for kind, part in (('formatters', {'class': 'theirs.Formatter'}),
                           ('handlers', {'class': 'theirs.Handler'}),
                           ('handlers', {'class': 'logging.handlers.SocketHandler'}),
                           ('filters', {'()': 'theirs.Filter'})):
            with self.subTest(kind=kind):
                self.assertEqual(self.looked_up({kind: {'theirs': part}}), 'ctp')


if __name__ == '__main__':
    unittest.main()
