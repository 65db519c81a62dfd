"""The edge: requests are parsed, authorised and answered here."""
