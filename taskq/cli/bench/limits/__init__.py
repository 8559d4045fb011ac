"""What taskq is compared with: a bare socket with a commit, a process pool, and how such a process is asked."""
