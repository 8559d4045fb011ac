"""Large payloads: what stands for one that has a file of its own (`filed`), and the files (`files`), which are written
and mapped here alone. Whoever makes or reads a payload comes in, and the engine, which never opens one."""
