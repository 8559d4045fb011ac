"""`taskq top`: a fleet on the whole screen. `app`, `screens`, `pane` and `table` need Textual, the extra `[top]`."""
