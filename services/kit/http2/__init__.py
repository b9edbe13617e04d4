"""Owns gRPC on the way of every model call: its wire (HTTP/2) spoken by the event loop itself, server and client.

    frames       what goes over a connection, and how a frame is written
    hpack        header blocks
    headers      what gRPC says in them: metadata, timeouts, statuses
    streams      one call on a connection: its messages, and what of it waits to be sent
    sending      what both sides of a connection send, as flow control has room for it
    connection   what they do with what comes: frames, settings, keepalive, the ways to end
    call         one call being served: the context its handler is given
    server       listens, finds handlers, drains
    client       a channel for unary calls
    client_connection   one connection of its, and the calls under way on it

What any gRPC peer may rely on is RFC 9113 and gRPC's PROTOCOL-HTTP2.md. Messages are not compressed, and a peer that
compresses its own is refused, as PROTOCOL-HTTP2.md has it. docs/decisions/021 says why this is not gRPC's own library.
"""
