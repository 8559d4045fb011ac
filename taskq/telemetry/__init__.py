"""The structured log: one JSON line per event in ``<directory>/log/taskq.jsonl``, and a console on stderr.

    broker    setup.configure -> record.compose, redaction -> fanout -> sink (file), stream (stderr)
    guardian  fanout.announce, journald.print_error
    CLI       reader.read, reader.follow -> render.render_console

Nothing is imported here: the guardian and the broker start without what only the command line needs.
"""
