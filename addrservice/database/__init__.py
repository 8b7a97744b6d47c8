"""Where entries are kept: one port, and an engine behind it for each store."""
