"""Tools that know neither the address book nor the web."""
