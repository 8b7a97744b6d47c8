"""Tests. Servers that they start from a configuration as it is shipped take a free admin port."""

import os

os.environ.setdefault('ADDRSERVICE_ADMIN_PORT', '0')
