"""The way from an empty database to today's tables, as alembic walks it."""
