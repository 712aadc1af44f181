"""Helpers shared by tests: `from testkit.x import y`. Only `tests/lib` is on sys.path, no other folder of ours."""
