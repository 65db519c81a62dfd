"""The asyncio shell around the kernel: futures in, effects out."""
