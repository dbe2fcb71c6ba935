"""Storage, HTTP, archives and tables: everything that reads or writes bytes outside the process."""
