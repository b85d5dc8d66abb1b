"""Bearer tokens: the file that names them, the commands that change it, and who shows one on a connection."""
