"""Resumable uploads as state machines: client side and server side, in public dialects, without any I/O.

One core, any dialect::

    agent                              wire                               server
    client.UploadClient                                                  decisions.decide_* / finish_append
        │  values.Create, Append, Query, Cancel  (dialect-free requests)      │  state.UploadState, verdicts
    rufh_client.RufhDialect    ──── HTTP request  ───▶                   detect.detect -> a ServerDialect:
    tus_client.TusDialect      ◀─── HTTP response ────                   rufh_server.RufhServer, tus_server.TusServer

`values` are the requests as parsed values; `state` is what a server keeps of one upload, with the one table of legal
transitions; `decisions` says what follows from a request; `client` says what to do next and what an answer means
(`outcomes`). `digests` are what bodies and whole uploads are held to, `joining` is about uploads made of others. A
dialect only translates: `rufh` is the IETF's "Resumable Uploads for HTTP", of which several drafts are in use; their
differences stand in one table there. `tus` is tus 1.0.0. `detect` tells them apart. `messages` are HTTP's, `fields`
parses structured fields, `replies` holds the table of status codes, `http_dates` reads and writes dates, `retry` is the
backoff.

Nothing is re-exported here: an agent that uploads need not import the server's half.
"""
