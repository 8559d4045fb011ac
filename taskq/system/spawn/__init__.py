"""How processes of Python are started with multiprocessing. The broker and consumers may come in."""
