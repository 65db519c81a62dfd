"""The gateway: provider calls pass through, byte for byte, each on a permit."""
