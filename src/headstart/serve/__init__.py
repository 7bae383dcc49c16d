"""Bundles behind HTTP: the Open Inference Protocol, plain JSON, and a page to try them on.

    rows ─► inputs (checked, never opened) ─► Served.encode ─► Batcher ─► the network ─► task.decode ─► answer

Nothing here is imported by the other rooms, so the web libraries are only loaded when a server starts.
"""
