"""Embedded in the host application: record, store, negotiate, upload."""
