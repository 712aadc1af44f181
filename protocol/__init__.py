"""What is said between agent and server, and when it may be said. Pure: no I/O, no clock, no entropy."""
