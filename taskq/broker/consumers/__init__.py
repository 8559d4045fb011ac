"""The broker's side of its consumer processes: spawn, hear, watch, replace, bury."""
