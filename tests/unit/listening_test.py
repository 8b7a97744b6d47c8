"""What the configuration says about a port becomes limits that this process can keep."""

from __future__ import annotations

import resource
import sys
import unittest
import unittest.mock
from pathlib import Path

if __name__ == '__main__':  # run as a file: then only this folder is searched for modules
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from addrservice.config import complete_config
from addrservice.errors import ConfigError
from addrservice.tornado.listening import (
    ADMIN_CONNECTIONS, SPARE_DESCRIPTORS, admin_limits, limits_of)

SETTINGS = complete_config({'server': {'max-connections': 500}})['server']


class LimitsTest(unittest.TestCase):
    def limits_with(self, soft: int, hard: int) -> list[tuple[int, int]]:
        """The limits of open files that are set where these are in force."""
        with (unittest.mock.patch.object(resource, 'getrlimit', return_value=(soft, hard)),
              unittest.mock.patch.object(resource, 'setrlimit') as setrlimit):
            limits_of(SETTINGS)
        return [call.args[1] for call in setrlimit.call_args_list]

    def test_files_for_all_connections_of_both_ports_and_for_the_rest_are_had(self) -> None:
        wanted = 500 + ADMIN_CONNECTIONS + SPARE_DESCRIPTORS
        self.assertEqual(self.limits_with(256, wanted), [(wanted, wanted)])
        self.assertEqual(self.limits_with(wanted, wanted), [])
        self.assertEqual(self.limits_with(resource.RLIM_INFINITY, resource.RLIM_INFINITY), [])

    def test_where_there_cannot_be_so_many_that_is_said(self) -> None:
        with self.assertRaisesRegex(ConfigError, '^server.max-connections: needs 584 open files'):
            self.limits_with(256, 583)

    def test_the_admin_port_has_few_connections_and_little_patience(self) -> None:
        public = limits_of(SETTINGS)
        limits = admin_limits(public)
        self.assertEqual(limits.max_connections, ADMIN_CONNECTIONS)
        self.assertLess(limits.header_timeout, public.header_timeout)
        self.assertEqual(limits.max_body_size, public.max_body_size)


if __name__ == '__main__':
    unittest.main()
