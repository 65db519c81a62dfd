"""The gate inside of HTTP clients: SDK calls are gated in process, without a server and without a wrapper.

One module a client library, of which none is loaded before it is asked for: `interlock.transports.httpx2`
(also as `interlock.InterlockTransport`), `interlock.transports.httpx` and `interlock.transports.aiohttp`.
"""
