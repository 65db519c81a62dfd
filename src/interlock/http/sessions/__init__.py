"""Sessions and their runs over HTTP."""
