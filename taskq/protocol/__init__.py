"""What travels between processes: frames, submissions, answers, the spool. Client, engines, broker and consumer all
come in.
"""
