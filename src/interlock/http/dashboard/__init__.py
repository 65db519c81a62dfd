"""The dashboard at ``/``: an open shell without any data, and what it shows over one stream.

The shell is the same for everybody. Its script asks for a stream of HTML, with the token in a header.
`fleet`, `sessions` and `ledger` say what is on it, `parts` what of it is sent again.
"""
