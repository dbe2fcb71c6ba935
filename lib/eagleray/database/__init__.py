"""The organisation's own SQL database, and what is shared with every other database spoken to."""
