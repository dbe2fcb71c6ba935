"""The organisation's SQL database, and connections to SQL databases in general."""
