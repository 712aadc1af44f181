"""What connects an agent with the program around it, each in a module that imports none of the others.

* `hooks`: what nobody has handled, recorded before the process dies; the agent installs them, unless ``hooks=False``;
* `logs`: records of the standard library's `logging`;
* `aiohttp_web`: the requests of an aiohttp.web application;
* `asgi`: the requests of an ASGI application (FastAPI, Starlette, Quart, ...).
"""
