"""The statements that addrservice sends, for peers on the same table; a test compares them."""

from __future__ import annotations

READ = 'SELECT version, document FROM addresses WHERE nickname = $1'
PAGE = ('SELECT nickname, version, document FROM addresses'
        ' WHERE nickname > $1 ORDER BY nickname LIMIT $2')
INSERT = ('INSERT INTO addresses (nickname, version, document) VALUES ($1, $2, $3)'
          ' ON CONFLICT (nickname) DO NOTHING')
UPDATE = 'UPDATE addresses SET version = $2, document = $3 WHERE nickname = $1'

TABLE = ('CREATE TABLE addresses (nickname {name} PRIMARY KEY NOT NULL, document text NOT NULL)',
         "ALTER TABLE addresses ADD COLUMN version {name} NOT NULL DEFAULT '0000000000000000'")
"""``{name}`` is the type of a text that is compared by its code points."""
