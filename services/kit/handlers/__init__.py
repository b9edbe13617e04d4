"""Owns the one wrapping of each RPC handler: everything that happens around a servicer's method, in order.

    request id → deadline → concurrency → who calls → may they → the method → refusals → metrics and log

A handler is wrapped once, when its servicer is registered; no interceptor objects are made per call. The wrapped
handler takes the request's bytes and decodes them itself, so that nothing is decoded for a caller without access, and
malformed bytes are the caller's error, not ours. Servicers therefore read request streams by iterating over them.

    rpc            those steps, of one RPC
    aio, sync      their order around a coroutine, an async generator, a function or a generator
    gate           the limit of calls at once
    registration   all handlers of a servicer, wrapped
"""
