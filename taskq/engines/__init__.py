"""Where jobs wait and end. Each engine has a folder; the broker and the tests come in."""
