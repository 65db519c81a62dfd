"""What a running server tells the tools of those who operate it, one module for each kind of tool."""
