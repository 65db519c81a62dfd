"""Who may run now, and why not: pure state machines, data in and data out."""
