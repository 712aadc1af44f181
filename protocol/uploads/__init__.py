"""Resumable uploads as state machines, client side and server side."""
