"""The address book over HTTP, on Tornado; nothing else in this project knows Tornado."""
